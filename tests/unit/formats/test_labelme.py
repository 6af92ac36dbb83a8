"""LabelMe files to prompts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.formats.dataset import HEIGHT, WIDTH, Dataset, only


def labelme(*shapes: Any, path: Any = "a.jpg") -> dict[str, Any]:
    return {"version": "5", "flags": {}, "shapes": list(shapes), "imagePath": path, "imageData": None} | {
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }


def shape(kind: str, *points: list[Any], **more: Any) -> dict[str, Any]:
    return {"label": "cat", "shape_type": kind, "points": list(points), "group_id": None, "flags": {}} | more


def test_labelme_shapes(data: Dataset) -> None:
    data.write(
        "json/a.json",
        labelme(
            shape("rectangle", [30, 40], [10, 20], score=0.5, description="left"),
            shape("polygon", [1, 2], [9, 4], [5, 30]),
            shape("circle", [50, 40], [53, 44]),
            shape("point", [5, 6]),
            shape("mask", [5, 6], [9, 9]),
            shape("polygon", [1, 2], [3, 4], [1, 4], group_id=1),
            shape("linestrip", [1, 2], [3, 4]),
            shape("polygon", [50, 20], [60, 40], [50, 40], group_id=1),
            shape("point", [55, 30], group_id=1),
            shape("polygon", [1, "x"]),
            "nonsense",
        ),
    )
    prompts = data.read("json")
    assert [prompt.prompt_id for prompt in prompts] == [f"a:{n}" for n in (0, 1, 2, 3, 4, 5, 6, 9, 10)]
    assert [prompt.box_xyxy for prompt in prompts[:6]] == [
        (10, 20, 30, 40),
        (1, 2, 9, 30),
        (45, 35, 55, 45),
        None,
        (5, 6, 10, 10),
        (1, 2, 60, 40),
    ]
    assert (prompts[3].points_xy, prompts[3].point_labels) == (((5, 6),), (1,))
    assert prompts[5].points_xy == ((55, 30),)
    assert (prompts[0].score, prompts[0].category, prompts[0].image_size) == (0.5, "cat", (80, 100))
    assert prompts[0].attributes == '{"description": "left", "shape_type": "rectangle"}'
    assert [prompt.error is None for prompt in prompts] == [True] * 6 + [False] * 3
    assert "shape 6: expected a shape with an area, or points, got a 'linestrip'" in (prompts[6].error or "")


@pytest.mark.parametrize(
    ("path", "image_id"),
    [
        ("../images/b.jpg", "b.jpg"),
        ("..\\images\\train\\c.jpg", "train/c.jpg"),
        ("b.jpg", "b.jpg"),
        ("C:\\pictures\\b.jpg", "b.jpg"),
        ("C:\\pictures\\secret.jpg", "a.jpg"),
        ("../secret.jpg", "a.jpg"),
        ("../images/../secret.jpg", "a.jpg"),
        ("/etc/passwd", "a.jpg"),
        (None, "a.jpg"),
        (7, "a.jpg"),
    ],
)
def test_labelme_images_stay_in_the_folder(data: Dataset, path: Any, image_id: str) -> None:
    data.write("json/a.json", labelme(shape("rectangle", [10, 20], [30, 40]), path=path))
    prompt = only(data.read("json"))
    assert (prompt.error, prompt.image_id, prompt.image_uri) == (None, image_id, data.uri(f"images/{image_id}"))
