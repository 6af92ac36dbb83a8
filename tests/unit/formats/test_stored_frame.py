"""Annotations of tools that ignore EXIF, in every format: turned, they are those of the upright image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stable_sam.images.orientation import turned_box, turned_hw, turned_xy
from tests.unit.formats.dataset import Dataset, only, voc, voc_object

STORED_HW = (80, 100)
BOX = (10.0, 20.0, 40.0, 60.0)
TURNS = range(1, 9)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    dataset = Dataset(tmp_path)
    for turn in TURNS:
        exif = Image.Exif()
        exif[0x0112] = turn
        buffer = io.BytesIO()
        Image.new("RGB", STORED_HW[::-1]).save(buffer, "JPEG", exif=exif)
        dataset.write(f"images/t{turn}.jpg", buffer.getvalue())
    return dataset


def coco(turn: int, bbox: Any = (10, 20, 30, 40), **image: Any) -> dict[str, Any]:
    record = {"id": 1, "image_id": 1, "bbox": list(bbox), "points": [[15, 25, 1]]}
    return {"images": [{"id": 1, "file_name": f"t{turn}.jpg"} | image], "annotations": [record]}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("declared", [{}, {"height": 80, "width": 100}])
def test_boxes_and_points_of_coco_are_turned(data: Dataset, turn: int, declared: dict[str, int]) -> None:
    data.write("weak.json", coco(turn, **declared))
    prompt = only(data.read("weak.json", frame="stored"))
    assert prompt.error is None
    assert prompt.box_xyxy == turned_box(BOX, turn, STORED_HW)
    assert prompt.points_xy == (turned_xy((15, 25), turn, STORED_HW),)
    assert prompt.image_size == (turned_hw(STORED_HW, turn) if declared else None)
    assert only(data.read("weak.json")).box_xyxy == BOX


@pytest.mark.parametrize("turn", TURNS)
def test_other_formats_are_turned_too(data: Dataset, turn: int) -> None:
    data.write("voc/x.xml", voc(voc_object("11 21 40 60"), name=f"t{turn}.jpg"))
    data.write(f"labels/t{turn}.txt", "0 0.25 0.5 0.3 0.5\n")
    row = {"image": f"t{turn}.jpg", "bbox_xywh": [10, 20, 30, 40]}
    data.write("rows.jsonl", str(row).replace("'", '"'))
    for source in ("voc", "labels", "rows.jsonl"):
        prompt = only(data.read(source, frame="stored"))
        assert prompt.error is None
        assert prompt.box_xyxy == turned_box(BOX, turn, STORED_HW)


def test_what_the_stored_image_does_not_hold_is_said(data: Dataset) -> None:
    data.write("weak.json", coco(6, height=100, width=80))
    error = only(data.read("weak.json", frame="stored")).error
    assert error is not None
    assert error.endswith(
        "t6.jpg: expected the declared 80 x 100 pixels to be those of the image as stored (source.frame: stored), "
        "which has 100 x 80 and EXIF orientation 6"
    )
    data.write("weak.json", coco(6, bbox=(10, 90, 30, 40)))
    error = only(data.read("weak.json", frame="stored")).error
    assert error is not None
    assert "outside the image" in error
