"""A table of painted masks that people review: three pictures with three prompts each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.formats.review_records import Answer
from stable_sam.identity import ModelIdentity
from stable_sam.records import Changes, Prompt, RefinedMask
from stable_sam.refining.shard_job import refine_shard
from stable_sam.review.export import export
from stable_sam.rle import encode_mask
from stable_sam.runs.commits import write_tombstones
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.plan import RunPlan, plan_request
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.storage.files import read_bytes, write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.query import query

MODEL = ModelIdentity(model_id="painter", weights_sha256="ab", dtype="float32")
HEIGHT, WIDTH = 40, 60


def painted(prompt_id: str) -> np.ndarray:
    """A frame with a hole and a part of its own, at a place that depends on the prompt."""
    mask, left = np.zeros((HEIGHT, WIDTH), np.bool_), 4 * int(prompt_id[1:]) % 30
    mask[5:25, left : left + 20] = True
    mask[10:20, left + 5 : left + 15] = False
    mask[30:33, left] = True
    return mask


class Painter:
    identity = MODEL

    def refine_image(self, image: np.ndarray, prompts: list[Prompt]) -> list[RefinedMask]:
        return [self._painted(prompt.prompt_id) for prompt in prompts]

    def _painted(self, prompt_id: str) -> RefinedMask:
        mask = encode_mask(painted(prompt_id))
        return RefinedMask(
            prompt_id=prompt_id, status="ok", mask_size=mask.size_hw, mask_counts=mask.counts, area=mask.area,
            bbox_xywh=mask.bbox_xywh, predicted_iou=0.6, prompt_stability=0.5, quality=0.55,
            gain_over_box=0.1, route="review", route_reason="prompt_stability 0.500 < 0.8",
        )  # fmt: skip


@dataclass
class Job:
    """Three pictures with three prompts each, and nights over them."""

    root: str
    annotations: str = "weak.json"
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    boxes: dict[str, tuple[float, float, float, float]] = field(
        default_factory=lambda: {f"p{k}": (1.0, 1.0, 30.0, 30.0) for k in range(9)}
    )

    @property
    def table(self) -> str:
        return join(self.root, "table")

    def image(self, number: int) -> str:
        return join(self.root, f"images/sub/{number}.png")

    def draw(self, number: int, grey: int) -> None:
        png = BytesIO()
        Image.new("RGB", (WIDTH, HEIGHT), (grey, grey, grey)).save(png, "PNG")
        write_bytes(self.image(number), png.getvalue())

    def plan(self, refresh: str | None = None) -> RunPlan:
        prompts = [
            Prompt(
                prompt_id=prompt_id, image_id=f"i{number % 3}", image_uri=self.image(number % 3), box_xyxy=box,
                category=("cat", "dog")[number % 2],
            )
            for prompt_id, box in self.boxes.items()
            for number in (int(prompt_id[1:]),)
        ]  # fmt: skip
        request = RunRequest(
            annotations_uri=join(self.root, self.annotations),
            images_uri=join(self.root, "images"),
            output_uri=self.table,
            config=RunConfig(refiner=self.refiner, max_withdrawn_fraction=1),
            refresh=frozenset({refresh} if refresh else ()),
        )
        return plan_request(request, prompts=prompts, model=MODEL)

    def refined(self, plan: RunPlan) -> RunManifest:
        assert plan.manifest is not None
        for shard in plan.manifest.shards:
            refine_shard(Painter(), plan.manifest, shard)
        for shard in plan.manifest.tombstones:
            write_tombstones(plan.manifest, shard)
        return plan.manifest

    def night(self, refresh: str | None = None) -> Changes:
        plan = self.plan(refresh)
        if plan.manifest is not None:
            publish(self.refined(plan))
        return plan.changes

    def rows(self, sql: str = "SELECT * FROM masks") -> dict[str, dict[str, Any]]:
        return {row["prompt_id"]: row for row in query(self.table, sql).to_pylist()}

    def export(self, to: str = "coco", name: str | None = None, **options: Any) -> str:
        out = join(self.root, name or f"export-{to}")
        export(self.table, to, out, **options)
        return out


def new_job(root: str, **more: Any) -> Job:
    """After its first night."""
    job = Job(root, **more)
    for number in range(3):
        job.draw(number, 100)
    assert job.night() == Changes(new=9)
    return job


def edit(uri: str, change: Callable[[Any], None]) -> None:
    document = json.loads(read_bytes(uri))
    change(document)
    write_bytes(uri, json.dumps(document).encode())


def corrected_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[2:20, 3:17] = True
    return mask


def rle(mask: np.ndarray) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": encode_mask(mask).counts}


def correct_p1_delete_p2(out: str) -> None:
    """What a person does: another mask for p1, no p2, the rest as it was."""

    def change(document: dict[str, Any]) -> None:
        annotations = {annotation["prompt_id"]: annotation for annotation in document["annotations"]}
        annotations["p1"]["segmentation"] = rle(corrected_mask())
        del annotations["p2"]
        document["annotations"] = list(annotations.values())

    edit(join(out, "instances.json"), change)


def answer(prompt_id: str, mask: np.ndarray | None = None, revision: int | None = 1, checked: bool = False) -> Answer:
    return Answer(
        prompt_id=prompt_id, mask=None if mask is None else encode_mask(mask), revision=revision, checked=checked,
        where=f"file, {prompt_id}",
    )  # fmt: skip
