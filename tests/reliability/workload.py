"""Small pictures and the weak boxes of two nights: the second one has new, changed and withdrawn prompts."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from PIL import Image

from stable_sam.storage.files import write_bytes
from stable_sam.storage.uris import join

PICTURES, MORE_PICTURES = 24, 4
PROMPTS_EACH = 2
CHANGED_PICTURES, WITHDRAWN = 10, 3
SHARD_PICTURES = 2
HEIGHT, WIDTH = 60, 80


@dataclass(frozen=True, slots=True)
class Night:
    """A source, and what the table holds after it was refined."""

    source: str
    """File name."""
    prompts: dict[str, list[float]]
    """prompt_id -> box, as the current rows must have them."""
    rows: int
    """Of all runs up to this night, tombstones included."""
    runs: int


def nights() -> tuple[Night, Night]:
    """The first night, and the second on top of it."""
    first = {_id(picture, k): _box(picture, k, shift=0.0) for picture in range(PICTURES) for k in range(PROMPTS_EACH)}
    second = dict(first)
    for picture in range(CHANGED_PICTURES):
        second |= {_id(picture, k): _box(picture, k, shift=1.5) for k in range(PROMPTS_EACH)}
    for picture in range(PICTURES - WITHDRAWN, PICTURES):
        del second[_id(picture, 0)]
    for picture in range(PICTURES, PICTURES + MORE_PICTURES):
        second |= {_id(picture, k): _box(picture, k, shift=0.0) for k in range(PROMPTS_EACH)}
    more = (CHANGED_PICTURES + MORE_PICTURES) * PROMPTS_EACH + WITHDRAWN
    return (
        Night("first.jsonl", first, len(first), 1),
        Night("second.jsonl", second, len(first) + more, 2),
    )


def write_workload(folder_uri: str) -> None:
    """Pictures and sources below `folder_uri`."""
    for picture in range(PICTURES + MORE_PICTURES):
        coarse = np.random.default_rng(picture).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, "jpeg")
        write_bytes(join(folder_uri, "images", _picture(picture)), file.getvalue())
    for night in nights():
        rows = [
            {"prompt_id": name, "image": _picture(int(name.split("-")[0])), "box_xyxy": box}
            for name, box in night.prompts.items()
        ]
        write_bytes(join(folder_uri, night.source), "\n".join(json.dumps(row) for row in rows).encode())


def config(ray_address: str | None, *, jitter_count: int) -> str:
    """YAML of a run with the tiny model; `jitter_count` makes it take its time."""
    ray: dict[str, Any] = {"actors": 1, "object_store_mb": 80}
    return yaml.safe_dump(
        {
            "refiner": {"model": "tiny", "jitter_count": jitter_count},
            "ray": ray if ray_address is None else ray | {"address": ray_address},
            "shard_images": SHARD_PICTURES,
        }
    )


def _id(picture: int, k: int) -> str:
    return f"{picture:03d}-{k}"


def _picture(picture: int) -> str:
    return f"{picture:03d}.jpg"


def _box(picture: int, k: int, shift: float) -> list[float]:
    x, y = 3.0 + picture % 7 + 20 * k + shift, 4.0 + picture % 5 + shift
    return [x, y, x + 30, y + 40]
