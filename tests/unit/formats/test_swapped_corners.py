"""Two opposite corners are a box in any order; a negative width or height is none, in every format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.formats.dataset import Dataset, voc, voc_object
from tests.unit.formats.weak_source import parquet

IMAGE = '<image id="0" name="a.jpg" width="100" height="80">'
CVAT = f"<annotations><version>1.1</version>{IMAGE}{{}}</image></annotations>"
OPEN_IMAGES = "ImageID,LabelName,XMin,XMax,YMin,YMax\na,/m/01,0.3,0.1,0.5,0.25\n"
LABELME = {"label": "cat", "shape_type": "rectangle", "points": [[30, 40], [10, 20]]}
SIZES = {"original_width": 100, "original_height": 80}
ROTATED = "<object><robndbox><cx>20</cx><cy>30</cy><w>-20</w><h>20</h><angle>0</angle></robndbox></object>"


def coco(bbox: list[Any]) -> dict[str, Any]:
    return {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1, "bbox": bbox}]}


def region(kind: str, **value: Any) -> list[Any]:
    result = {"id": "r", "type": f"{kind}labels", "value": {"x": 10, "y": 20, "rotation": 0} | value, **SIZES}
    return [{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [result]}]}]


def rows(**box: Any) -> str:
    return json.dumps({"image": "a.jpg", **box}) + "\n" + json.dumps({"image": "a.jpg", "box_xyxy": [1, 2, 3, 4]})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.xml", voc(voc_object("30 40 11 21"))),
        (
            "a.xml",
            voc(
                "<object><segm><box><xmin>30</xmin><ymin>40</ymin><xmax>10</xmax><ymax>20</ymax></box></segm></object>"
            ),
        ),
        ("a.xml", CVAT.format('<box label="cat" xtl="30" ytl="40" xbr="10" ybr="20"/>')),
        ("a.json", {"shapes": [LABELME], "imagePath": "a.jpg", "imageWidth": 100, "imageHeight": 80}),
        ("a.csv", OPEN_IMAGES),
        ("a.jsonl", rows(box_xyxy=[30, 40, 10, 20])),
        ("a.jsonl", rows(box_xyxy=[10, 40, 30, 20])),
        ("a.parquet", parquet([{"image": "a.jpg", "box_xyxy": [30.0, 20.0, 10.0, 40.0]}])),
    ],
)
def test_swapped_corners_are_the_box_between_them(name: str, content: Any, data: Dataset) -> None:
    data.write(name, content)
    prompt = data.read(name)[0]
    assert (prompt.box_xyxy, prompt.error) == ((10, 20, 30, 40), None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", coco([30, 20, -20, 20])),
        ("a.json", coco([10, 40, 20, -20])),
        ("a.jsonl", rows(bbox_xywh=[30, 20, -20, 20])),
        ("a.txt", "0 0.2 0.4 -0.2 0.25"),
        ("a.json", region("rectangle", width=-10, height=20)),
        ("a.json", region("rectangle", width=-10, height=20, rotation=30)),
        ("a.json", region("ellipse", radiusX=-10, radiusY=20)),
        ("a.xml", voc(ROTATED)),
        ("a.xml", CVAT.format('<ellipse label="cat" cx="20" cy="30" rx="-10" ry="10"/>')),
    ],
)
def test_a_negative_width_or_height_is_a_failed_row(name: str, content: Any, data: Dataset) -> None:
    data.write(name, content)
    assert "expected width and height above 0" in (data.read(name)[0].error or "")
