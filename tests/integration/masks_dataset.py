"""A table that tests make in milliseconds: tiny images, prompts as records, a refiner that answers with one pixel."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stable_sam.config import RunConfig
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.shard_job import refine_shard
from stable_sam.runs.commits import write_tombstones
from stable_sam.runs.manifest import RunManifest
from stable_sam.runs.plan import plan_run
from stable_sam.runs.request import RunRequest
from stable_sam.storage.files import write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.query import query

MODEL = ModelIdentity(model_id="constant", weights_sha256="ab", dtype="float32")


class ConstantRefiner:
    """Answers every prompt with one pixel; counts the images it saw."""

    identity = MODEL

    def __init__(self) -> None:
        self.images = 0

    def refine_image(self, image: np.ndarray, prompts: list[Prompt]) -> list[RefinedMask]:
        self.images += 1
        return [
            RefinedMask(
                prompt_id=prompt.prompt_id,
                status="ok",
                mask_size=image.shape[:2],
                mask_counts="01",
                area=1,
                prompt_stability=0.25,
                route="accept",
            )
            for prompt in prompts
        ]


@dataclass(frozen=True)
class Dataset:
    """Six images and a table beside them."""

    root: str

    @property
    def output(self) -> str:
        return join(self.root, "table")

    def prompts(self, count: int = 12) -> list[Prompt]:
        return [
            Prompt(
                prompt_id=f"p{k:02}", image_id=str(k % 6), image_uri=join(self.root, f"images/{k % 6}.png"),
                box_xyxy=(0, 0, 4, 4),
            )
            for k in range(count)
        ]  # fmt: skip

    def plan(self, prompts: list[Prompt] | None = None) -> RunManifest | None:
        return plan_run(
            self.prompts() if prompts is None else prompts,
            RunRequest(
                annotations_uri=join(self.root, "weak.json"),
                images_uri=join(self.root, "images"),
                output_uri=self.output,
                config=RunConfig(shard_images=2),
            ),
            MODEL,
        )

    def planned(self, prompts: list[Prompt] | None = None) -> RunManifest:
        manifest = self.plan(prompts)
        assert manifest is not None
        return manifest

    def refined(self, prompts: list[Prompt] | None = None) -> RunManifest:
        manifest, refiner = self.planned(prompts), ConstantRefiner()
        for shard in manifest.shards:
            refine_shard(refiner, manifest, shard)
        for shard in manifest.tombstones:
            write_tombstones(manifest, shard)
        return manifest

    def ask(self, sql: str, as_of: str | None = None) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = query(self.output, sql, as_of=as_of).to_pylist()
        return rows


def new_dataset(root: str) -> Dataset:
    """Store the images."""
    png = io.BytesIO()
    Image.new("RGB", (6, 5)).save(png, "PNG")
    for image in range(6):
        write_bytes(join(root, f"images/{image}.png"), png.getvalue())
    return Dataset(root)
