"""CVAT for images to prompts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stable_sam.errors import AnnotationError
from tests.unit.formats.dataset import Dataset, only


def cvat(*shapes: str, **image: Any) -> str:
    given = {"id": 0, "name": "a.jpg", "width": 100, "height": 80} | image
    attributes = " ".join(f'{name}="{value}"' for name, value in given.items())
    return f"<annotations><version>1.1</version><meta/><image {attributes}>{''.join(shapes)}</image></annotations>"


def test_cvat_shapes(data: Dataset) -> None:
    shapes = [
        '<box label="cat" occluded="1" z_order="2" xtl="1" ytl="2" xbr="30" ybr="40"><attribute name="age">3'
        "</attribute></box>",
        '<tag label="outside"/>',
        '<polygon label="cat" points="1,2;9,4;5,30"/>',
        '<points label="cat" points="1,2;9,4"/>',
        '<mask label="cat" rle="1,2" left="3" top="4" width="5" height="6"/>',
        '<ellipse label="cat" cx="50" cy="40" rx="10" ry="5"/>',
        '<box label="cat" xtl="40" ytl="30" xbr="60" ybr="40" rotation="90.0"/>',
        '<skeleton label="cat"><points label="1" points="5,6" occluded="0" outside="0"/>'
        '<points label="2" points="7,8" occluded="1" outside="0"/></skeleton>',
        '<polygon label="cat" group_id="3" points="1,2;3,4;1,4"/>',
        '<polyline label="cat" points="1,2;9,4"/>',
        '<polygon label="cat" group_id="3" points="50,20;60,40;50,40"/>',
        '<box label="cat" xtl="1" ytl="2" xbr="x" ybr="40"/>',
        '<polygon label="cat" points="1;2"/>',
    ]
    data.write("cvat.xml", cvat(*shapes))
    prompts = data.read("cvat.xml")
    assert [prompt.prompt_id for prompt in prompts] == [f"a.jpg:{n}" for n in range(11)]
    assert [prompt.box_xyxy for prompt in prompts[:8]] == [
        (1, 2, 30, 40),
        (1, 2, 9, 30),
        None,
        (3, 4, 8, 10),
        (40, 35, 60, 45),
        pytest.approx((45, 25, 55, 45)),
        None,
        (1, 2, 60, 40),
    ]
    assert [prompts[n].points_xy for n in (2, 6)] == [((1, 2), (9, 4)), ((5, 6),)]
    assert [prompt.error is None for prompt in prompts] == [True] * 8 + [False] * 3
    assert json.loads(prompts[0].attributes or "") == {"age": "3", "occluded": 1, "shape": "box", "z_order": 2}
    assert "polyline a.jpg:8: expected a shape with an area, or points, got a polyline" in (prompts[8].error or "")


def test_cvat_of_projects_and_of_videos(data: Dataset) -> None:
    box = '<box label="cat" xtl="1" ytl="2" xbr="30" ybr="40"/>'
    data.write("cvat.xml", cvat(box, name="c.jpg", subset="train"))
    assert only(data.read("cvat.xml")).image_id == "train/c.jpg"
    data.write("cvat.xml", "<annotations><track id='0'/></annotations>")
    with pytest.raises(AnnotationError, match=r"expected CVAT for images, got CVAT for video"):
        data.read("cvat.xml")
