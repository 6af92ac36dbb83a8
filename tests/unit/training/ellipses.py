"""What the tests of training share: pictures of coloured ellipses, short settings, a kill."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from safetensors import safe_open

from stable_sam.config import RefinerConfig
from stable_sam.modeling.load import LoadedModel, load_model
from stable_sam.training.training_config import BaseTraining

PICTURES = 3
"""In each set."""


def write_set(folder: Path, seed: int, images: str, file_name: str) -> Path:
    """Three pictures with two coloured ellipses each; returns the folder."""
    rng = np.random.default_rng(seed)
    (folder / images).mkdir(parents=True)
    coco: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "ellipse"}]}
    for number in range(PICTURES):
        height, width = (72, 96) if number % 2 else (96, 64)
        picture = np.full((height, width, 3), rng.integers(0, 90), np.uint8)
        name = f"{number}.png"
        coco["images"].append({"id": number, "file_name": file_name.format(name), "height": height, "width": width})
        for part in range(2):
            mask = np.zeros((height, width), np.uint8)
            center = (width // 2, height // 4 + part * height // 2)
            axes = (int(rng.integers(12, width // 3)), int(rng.integers(8, height // 4)))
            cv2.ellipse(mask, center, axes, 0, 0, 360, 1, -1)
            picture[mask > 0] = rng.integers(100, 256, 3)
            rle = coco_mask.encode(np.asfortranarray(mask))
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            coco["annotations"].append(
                {"id": len(coco["annotations"]), "image_id": number, "category_id": 1, "segmentation": segmentation}
            )
        cv2.imwrite(str(folder / images / name), picture)
    (folder / "instances.json").write_text(json.dumps(coco))
    return folder


def settings_of(kind: type, **changes):
    """Three steps, those of a base in two stages; `changes` go over them."""
    length: dict = {"steps": 3, "batch_images": 2}
    if kind is BaseTraining:
        length = {"stages": [{"size": 96, "steps": 1, "batch_images": 1}, {"size": 64, "steps": 2, "batch_images": 2}]}
    return kind.from_dict({"warmup_steps": 1, "checkpoint_steps": 2, "ema": 0.5, "seed": 3} | length | changes)


def tiny() -> LoadedModel:
    return load_model(RefinerConfig(model="tiny", plugin=False, device="cpu"))


def nano(checkpoint: Path, **changes) -> RefinerConfig:
    return RefinerConfig(model="nano", checkpoint_uri=str(checkpoint), device="cpu", **({"plugin": False} | changes))


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, "pt") as stored:
        return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a mapping


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as stored:
        return stored.metadata()


def same(one, other) -> bool:
    """Whether two batches hold the same tensors."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    names = [name for name in type(one).__dataclass_fields__ if getattr(one, name) is not None]
    return all(same(getattr(one, name), getattr(other, name)) for name in names)


class Killed(BaseException):
    """Nobody catches it, as nobody catches a kill."""


def watch(monkeypatch, module, name: str, kill_at: int | None = None) -> list:
    """The batches that the loss `module.name` sees; the call with that number, from 0, kills the run."""
    seen: list = []
    real = getattr(module, name)

    def watched(sam, batch, *rest):
        if len(seen) == kill_at:
            raise Killed
        seen.append(batch)
        return real(sam, batch, *rest)

    monkeypatch.setattr(module, name, watched)
    return seen
