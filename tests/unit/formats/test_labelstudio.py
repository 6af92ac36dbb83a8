"""Label Studio's exports to prompts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from stable_sam.formats.labelstudio.brush_rle import encode_brush
from tests.unit.formats.dataset import HEIGHT, WIDTH, Dataset, only


def task(*results: Any, image: Any = "a.jpg", **more: Any) -> dict[str, Any]:
    return {"id": 5, "data": {"image": image}, "annotations": [{"id": 7, "result": list(results)}]} | more


def region(kind: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"id": "r", "type": kind, "original_width": WIDTH, "original_height": HEIGHT, "value": value} | more


def test_label_studio_regions_are_per_cent_of_the_image(data: Dataset) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:20, 30:60] = mask[40, 5] = True
    box = {"x": 10, "y": 25, "width": 20, "height": 50}
    results = [
        region("rectanglelabels", box | {"rectanglelabels": ["cat"]}, id="a", score=0.5),
        region("polygonlabels", {"points": [[1, 50], [3, 100], [2, 75]], "polygonlabels": ["dog"]}, id="b"),
        region("ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 25}, id="c"),
        region("keypointlabels", {"x": 50, "y": 25, "width": 1, "keypointlabels": ["cat"]}, id="d"),
        region("brushlabels", {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["cat"]}, id="e"),
        region("rectangle", box | {"rotation": 90}, id="f"),
        region("labels", box | {"labels": ["horse", "grey"]}, id="f"),
        region("choices", {"choices": ["good"]}, id="f", from_name="mood"),
        region("choices", {"choices": ["blurred"]}, id="g"),
        {"type": "relation", "from_id": "a", "to_id": "b"},
    ]
    data.write("tasks.json", [task(*results)])
    prompts = data.read("tasks.json")
    assert [prompt.prompt_id for prompt in prompts] == [f"5:7:{name}" for name in "abcdef"]
    assert [prompt.error for prompt in prompts] == [None] * 6
    assert [prompt.box_xyxy for prompt in prompts] == [
        (10, 20, 30, 60),
        (1, 40, 3, 80),
        (40, 20, 60, 60),
        None,
        (5, 10, 60, 41),
        pytest.approx((0, 20, 10, 40)),
    ]
    assert (prompts[3].points_xy, prompts[3].point_labels) == (((50, 20),), (1,))
    assert [prompt.category for prompt in prompts] == ["cat", "dog", None, "cat", "cat", "horse"]
    assert (prompts[0].score, prompts[0].image_size, prompts[0].annotation_id) == (0.5, (80, 100), "a")
    assert json.loads(prompts[5].attributes or "") == {"labels": ["horse", "grey"], "mood": ["good"]}


def test_label_studio_takes_annotations_before_predictions_and_none_that_was_cancelled(data: Dataset) -> None:
    box = {"x": 10, "y": 25, "width": 20, "height": 50}
    made = {name: [{"id": name, "result": [region("rectangle", box)]}] for name in ("annotations", "predictions")}
    cancelled = [{"id": "no", "was_cancelled": True, "result": [region("rectangle", box)]}]
    tasks = [
        task(id=1, **made),
        task(id=2, annotations=cancelled, predictions=made["predictions"]),
        task(id=3, annotations=[]),
        "nonsense",
        {"id": 9},
    ]
    data.write("tasks.json", tasks)
    prompts = data.read("tasks.json")
    assert [prompt.prompt_id for prompt in prompts] == ["1:annotations:r", "2:predictions:r", "task-3", "task-4"]
    assert [prompt.error is None for prompt in prompts] == [True, True, False, False]


def test_a_label_studio_target_storage(data: Dataset) -> None:
    value = {"x": 10, "y": 25, "width": 20, "height": 50, "rectanglelabels": ["cat"]}
    for number in (1, 2):
        inner = {"id": number, "data": {"image": "a.jpg"}}
        document = {"id": 10 + number, "result": [region("rectanglelabels", value)], "task": inner}
        data.write(f"target/{number}", document)
    assert [prompt.prompt_id for prompt in data.read("target/*")] == ["1/1:11:r", "2/2:12:r"]


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("/data/local-files/?d=sets/images/a.jpg", True),
        ("/data/upload/3/0a1b2c3d-a.jpg", True),
        ("s3://lake/images/a.jpg", True),
        ("https://example.org/a.jpg?token=x", True),
        ("/data/local-files/?d=../secret.jpg", False),
        ("../secret.jpg", False),
        ("https://example.org/secret.jpg", False),
        ("x.jpg", False),
        ("http://[", False),
    ],
)
def test_label_studio_images(data: Dataset, reference: str, found: bool) -> None:
    value = {"x": 10, "y": 25, "width": 20, "height": 50}
    data.write("tasks.json", [task(region("rectangle", value), image=reference)])
    prompt = only(data.read("tasks.json"))
    assert (prompt.image_uri == data.uri("images/a.jpg"), prompt.error is None) == (found, found)


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (region("rectangle", {"x": "10", "y": 25, "width": 20, "height": 50}), "as numbers"),
        (region("rectangle", None), "expected a region with a value"),
        (region("rectangle", {"x": 1, "y": 1, "width": 5, "height": 5}, image_rotation=90), "an image that is not"),
        (region("polygon", {"points": "x"}), "got neither"),
        (region("polygon", {"points": [[1, None]]}), "expected a box of 4 numbers"),
        (region("brush", {"format": "rle", "rle": [0] * 20}), "expected brush strokes on 100 x 80 pixels, got 0"),
        (region("brush", {"format": "rle", "rle": [0, 0, 125, 0, 63, 0, 0]}), "bytes that end too early"),
        (region("brush", {"format": "rle", "rle": "AAA"}), "as a list of bytes"),
        (region("brush", {"format": "png"}), "as rle"),
        (region("brush", {"rle": encode_brush(np.zeros((HEIGHT, WIDTH), bool))}), "got neither"),
        (region("keypoint", {"x": 10, "y": 25}, is_positive=False), "background points only"),
        (region("ellipse", {"x": 1e400, "y": 1, "radiusX": 5, "radiusY": 5}), "as numbers"),
        ("nonsense", "expected a region with a value"),
    ],
)
def test_a_bad_label_studio_region_is_a_failed_prompt(data: Dataset, result: Any, problem: str) -> None:
    data.write("tasks.json", [task(result)])
    prompt = only(data.read("tasks.json"))
    assert problem in (prompt.error or "")
    assert (prompt.error or "").startswith(f"{data.uri('tasks.json')}: task 5, region ")


def test_label_studio_without_sizes_reads_the_header(data: Dataset) -> None:
    data.write("tasks.json", [task({"type": "rectangle", "value": {"x": 10, "y": 25, "width": 20, "height": 50}})])
    prompt = only(data.read("tasks.json"))
    assert (prompt.prompt_id, prompt.box_xyxy, prompt.image_size) == ("5:7:0", (10, 20, 30, 60), (80, 100))
