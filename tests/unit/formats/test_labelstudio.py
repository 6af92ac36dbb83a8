"""Label Studio's exports to prompts."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

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
    assert (prompt.error or "").startswith(f"{data.uri('tasks.json')}: task 5 at place 0, region ")


def test_label_studio_without_sizes_reads_the_header(data: Dataset) -> None:
    data.write("tasks.json", [task({"type": "rectangle", "value": {"x": 10, "y": 25, "width": 20, "height": 50}})])
    prompt = only(data.read("tasks.json"))
    assert (prompt.prompt_id, prompt.box_xyxy, prompt.image_size) == ("5:7:0", (10, 20, 30, 60), (80, 100))


BOX = {"x": 10, "y": 25, "width": 20, "height": 50}


def several(data: Any, *results: Any) -> list[dict[str, Any]]:
    return [{"id": 5, "data": data, "annotations": [{"id": 7, "result": list(results)}]}]


@pytest.mark.parametrize(
    ("data_of_task", "results", "names"),
    [
        (
            {"before": "a.jpg", "after": "b.jpg"},
            [{"to_name": "img_after"}, {"to_name": "img_before"}],
            ["b.jpg", "a.jpg"],
        ),
        ({"image_before": "a.jpg", "image_after": "b.jpg"}, [{"to_name": "img-After"}], ["b.jpg"]),
        ({"image": "a.jpg", "image2": "b.jpg"}, [{"to_name": "img"}, {"to_name": "img_2"}], ["a.jpg", "b.jpg"]),
        ({"image": "a.jpg", "thumb": "b.jpg"}, [{"to_name": "image"}], ["a.jpg"]),
        ({"pages": ["a.jpg", "b.jpg"]}, [{"to_name": "img", "item_index": 1}, {"item_index": 0}], ["b.jpg", "a.jpg"]),
        ({"pages": [{"url": "a.jpg"}, {"url": "b.jpg"}]}, [{"to_name": "page_1"}], ["b.jpg"]),
        ({"pages": ["b.jpg"], "text": "x"}, [{"to_name": "img"}], ["b.jpg"]),
    ],
)
def test_regions_of_a_task_with_several_images_are_on_their_own(
    data: Dataset, data_of_task: Any, results: list[Any], names: list[str]
) -> None:
    regions = [region("rectangle", BOX, id=f"r{n}") | result for n, result in enumerate(results)]
    data.write("tasks.json", several(data_of_task, *regions))
    prompts = data.read("tasks.json")
    assert [(prompt.image_uri, prompt.error) for prompt in prompts] == [(data.uri(f"images/{n}"), None) for n in names]


@pytest.mark.parametrize(
    ("data_of_task", "result", "problem"),
    [
        ({"one": "a.jpg", "two": "b.jpg"}, {"to_name": "img"}, "got 'img' where the task has one, two"),
        ({"left": "a.jpg", "right": "b.jpg"}, {"to_name": "left_right"}, "got 'left_right' where"),
        ({"one": "a.jpg", "two": "b.jpg"}, {}, "got None where"),
        ({"pages": ["a.jpg", "b.jpg"]}, {"to_name": "img"}, "expected item_index from 0 to 1 for the pages of pages"),
        ({"pages": ["a.jpg", "b.jpg"]}, {"item_index": 2}, "got 2"),
        ({"text": "a story"}, {"to_name": "img"}, "expected a task with an image"),
    ],
)
def test_a_region_of_several_images_that_does_not_say_which_fails(
    data: Dataset, data_of_task: Any, result: Any, problem: str
) -> None:
    data.write("tasks.json", several(data_of_task, region("rectangle", BOX) | result))
    prompt = only(data.read("tasks.json"))
    assert prompt.image_uri == ""
    assert problem in (prompt.error or "")


def test_a_region_id_that_comes_again_on_another_image_is_another_region(data: Dataset) -> None:
    results = [
        region("rectangle", BOX, to_name="img_one"),
        region("rectangle", BOX, to_name="img_two"),
        region("choices", {"choices": ["good"]}, to_name="img_one", from_name="mood"),
    ]
    data.write("tasks.json", several({"one": "a.jpg", "two": "b.jpg"}, *results))
    prompts = data.read("tasks.json")
    assert [(p.prompt_id, p.image_id) for p in prompts] == [("5:7:r", "a.jpg"), ("5:7:r-1", "b.jpg")]
    assert prompts[0].attributes == '{"mood": ["good"]}'


def test_shapes_of_one_region_are_one_prompt(data: Dataset) -> None:
    data.write(
        "tasks.json", [task(region("rectangle", BOX), region("rectangle", BOX | {"x": 50}), region("keypoint", BOX))]
    )
    prompt = only(data.read("tasks.json"))
    assert (prompt.box_xyxy, prompt.points_xy, prompt.error) == ((10, 20, 70, 60), ((10, 20),), None)


def png(mode: str, painted: Any, rest: Any) -> str:
    image = Image.new(mode, (WIDTH, HEIGHT), rest)
    image.paste(painted, (30, 10, 60, 20))
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("mode", "painted", "rest"),
    [
        ("L", 255, 0),
        ("1", 1, 0),
        ("RGB", (255, 0, 0), (0, 0, 0)),
        ("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)),
        ("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),
    ],
)
def test_a_bitmask_gives_the_box_around_what_is_painted(data: Dataset, mode: str, painted: Any, rest: Any) -> None:
    value = {"imageDataURL": png(mode, painted, rest), "bitmasklabels": ["lid"]}
    data.write("tasks.json", [task(region("bitmasklabels", value))])
    prompt = only(data.read("tasks.json"))
    assert (prompt.box_xyxy, prompt.category, prompt.error) == ((30, 10, 60, 20), "lid", None)


def test_vectors_and_magic_wands_give_the_box_around_them(data: Dataset) -> None:
    square = [{"x": 10, "y": 25}, {"x": 30, "y": 25}, {"x": 30, "y": 75}, {"x": 10, "y": 75}]
    bent = [
        {**square[0], "isBezier": True, "controlPoint2": {"x": 10, "y": 5}},
        square[1] | {"controlPoint1": {"x": 30, "y": 5}},
    ]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:20, 30:60] = True
    results = [
        region("vectorlabels", {"vertices": square, "closed": True, "vectorlabels": ["a"]}, id="a"),
        region("vector", {"vertices": [*bent, *square[2:]], "closed": True}, id="b"),
        region("magicwand", {"format": "rle", "rle": encode_brush(mask)}, id="c"),
    ]
    data.write("tasks.json", [task(*results)])
    straight, curved, wand = data.read("tasks.json")
    assert (straight.box_xyxy, straight.category) == ((10, 20, 30, 60), "a")
    assert curved.box_xyxy == pytest.approx((10, 8, 30, 60))
    assert wand.box_xyxy == (30, 10, 60, 20)


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (region("vector", {"vertices": [{"x": 1, "y": 2}], "closed": False}), "an open vector is a line"),
        (region("vector", {"vertices": [{"x": 1}], "closed": True}), "expected a vector with vertices"),
        (region("bitmask", {"imageDataURL": "data:image/png;base64,AAAA"}), "of 100 x 80 pixels, got no PNG"),
        (region("bitmask", {"imageDataURL": "https://host/a.png"}), "expected a bitmask as data:image/png"),
        (region("bitmask", {"imageDataURL": png("L", 0, 0)}), "got neither"),
        (region("videorectangle", {"sequence": [{"frame": 1}]}), "a region of type 'videorectangle' is not read"),
        (region("cuboid", {"x": 1, "y": 2, "z": 3}), "a region of type 'cuboid' is not read"),
        (region("skeletonlabels", {"points": [[1, 2]]}), "a region of type 'skeletonlabels' is not read"),
    ],
)
def test_a_region_of_a_kind_that_is_not_read_is_a_failed_prompt(data: Dataset, result: Any, problem: str) -> None:
    data.write("tasks.json", [task(result, region("rectangle", BOX, id="other"))])
    bad, good = data.read("tasks.json")
    assert good.error is None
    assert problem in (bad.error or "")
