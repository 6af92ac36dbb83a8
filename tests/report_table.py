"""Tables for tests of the report: masks that the test draws itself, published by the library's own writers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stable_sam.config import RunConfig
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.shard_job import refine_shard
from stable_sam.rle import encode_mask
from stable_sam.runs.commits import write_tombstones
from stable_sam.runs.plan import plan_run
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest


class Scripted:
    """Answers each prompt with the mask it was given for it."""

    identity = ModelIdentity(model_id="scripted", weights_sha256="ab" * 32, dtype="float32")

    def __init__(self, answers: Mapping[str, RefinedMask]) -> None:
        self.answers = answers

    def refine_image(self, image: np.ndarray, prompts: list[Prompt]) -> list[RefinedMask]:
        return [self.answers[prompt.prompt_id] for prompt in prompts]


def answer(prompt_id: str, mask: np.ndarray | None = None, **fields: Any) -> RefinedMask:
    """A row of status "ok", or as `fields` say, with the columns of `mask`."""
    drawn = {}
    if mask is not None:
        rle = encode_mask(mask)
        drawn = {"mask_size": rle.size_hw, "mask_counts": rle.counts, "area": rle.area, "bbox_xywh": rle.bbox_xywh}
    given: dict[str, Any] = {"status": "ok", "route": "review", "route_reason": "by hand"} | drawn | fields
    return RefinedMask(prompt_id=prompt_id, **given)


def picture(path: Path, width: int, height: int, color: str = "gray") -> str:
    """A picture of one colour; returns its URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), color).save(path)
    return str(path)


def publish_night(root: Path, prompts: list[Prompt], answers: list[RefinedMask], night: str | None = None) -> str:
    """Refine and publish what is different in `prompts`; returns the table's URI."""
    manifest = plan_run(
        prompts,
        RunRequest(
            annotations_uri=str(root / "weak.json"),
            images_uri=str(root / "images"),
            output_uri=str(root / "table"),
            config=RunConfig(),
            logical_date=night,
        ),
        Scripted.identity,
    )
    assert manifest is not None
    refiner = Scripted({answer.prompt_id: answer for answer in answers})
    for shard in manifest.shards:
        refine_shard(refiner, manifest, shard)
    for shard in manifest.tombstones:
        write_tombstones(manifest, shard)
    publish(manifest)
    return manifest.output_uri


def page_data(page: Path) -> list[dict[str, Any]]:
    """The entries in the page's JSON."""
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    entries: list[dict[str, Any]] = json.loads(data)["entries"]
    return entries


def page_pictures(page: Path) -> dict[str, str]:
    """WebP files in base64 by name."""
    return dict(re.findall(r'<script type="image/webp" id="([^"]+)">([^<]*)</script>', page.read_text()))
