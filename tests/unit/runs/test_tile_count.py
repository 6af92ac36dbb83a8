"""What a dry run says of the tiles that a night will take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.images.frames import Frame
from stable_sam.records import Prompt
from stable_sam.refining.refiner import Refiner
from stable_sam.runs.plan import plan_request
from stable_sam.runs.request import RunRequest
from stable_sam.runs.tile_count import TileCount

SETTINGS = RefinerConfig(model="tiny", jitter_count=0, second_pass="off", max_tiles=9)
HW = (300, 400)


def counted(folder: Path, boxes: list[list[float]], config: RefinerConfig = SETTINGS, *, sized: bool = True) -> Any:
    """The count for boxes (XYWH) and a point on one image, of a source that says its size or does not."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", HW[::-1]).save(folder / "images" / "a.png")
    size = {"width": HW[1], "height": HW[0]} if sized else {}
    document = {
        "images": [{"id": 1, "file_name": "a.png", **size}],
        "annotations": [{"id": n, "image_id": 1, "bbox": box} for n, box in enumerate(boxes)]
        + [{"id": 99, "image_id": 1, "points": [[40, 30, 1]]}, {"id": 98, "image_id": 1, "bbox": [1, 1, 0, 0]}],
    }
    (folder / "weak.json").write_text(json.dumps(document))
    request = RunRequest(
        annotations_uri=str(folder / "weak.json"),
        images_uri=str(folder / "images"),
        output_uri=str(folder / "table"),
        config=RunConfig(refiner=config),
    )
    return plan_request(request, dry_run=True).tiles


def test_a_dry_run_counts_the_tiles_that_the_refiner_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [[float(x), float(y), 9.0, 7.0] for x, y in np.random.default_rng(0).uniform(0, 280, (12, 2))]
    boxes.append([10.0, 12.0, 260.0, 270.0])
    count = counted(tmp_path, boxes, SETTINGS.model_copy(update={"max_tiles": 64}))
    prompts = [
        Prompt(prompt_id=str(n), image_id="1", image_uri="a", box_xyxy=(x, y, x + w, y + h))
        for n, (x, y, w, h) in enumerate(boxes)
    ]
    monkeypatch.setattr(Frame, "leaves_window", lambda frame, logits: False)  # the random model's masks are everywhere
    refiner = Refiner(SETTINGS.model_copy(update={"max_tiles": 64}))
    rows = refiner.refine_image(np.zeros((*HW, 3), np.uint8), prompts)
    tiles = len({row.tile_xywh for row in rows} - {None})
    assert count == TileCount(tiles=tiles, images=1, bound=64, images_without_size=0, prompts_without_box=1)
    assert count.line() == (
        f"Tiles: {tiles} for small boxes on 1 image; at most 64 in all; not known for 1 prompt with points alone."
    )
    few = counted(tmp_path, boxes)
    assert few.tiles <= few.bound == 9


def test_of_an_image_without_a_size_only_the_bound_is_known(tmp_path: Path) -> None:
    count = counted(tmp_path, [[5.0, 5.0, 9.0, 7.0]], sized=False)
    assert (count.tiles, count.bound, count.images_without_size) == (0, 9, 1)
    assert "1 image of undeclared size" in count.line()


def test_without_tiles_nothing_is_counted(tmp_path: Path) -> None:
    off = SETTINGS.model_copy(update={"tiles": "off"})
    assert counted(tmp_path, [[5.0, 5.0, 9.0, 7.0]], off) is None
