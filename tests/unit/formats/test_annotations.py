"""Annotation files of every supported format, good and bad, to prompts: one prompt for each annotation, always."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from stable_sam.errors import AnnotationError, StableSamError, StorageError
from stable_sam.formats.read import read_prompts
from stable_sam.records import Prompt
from stable_sam.rle import encode_segmentation
from tests.unit.formats.weak_source import DETECTIONS, ROWS, Source, annotation, coco, parquet

NAN, INF = float("nan"), float("inf")


def encode(polygons: list[list[float]]) -> dict[str, Any]:
    mask = encode_segmentation(polygons, (80, 100))
    return {"size": list(mask.size_hw), "counts": mask.counts}


def test_coco_instance_with_everything(source: Source) -> None:
    record = annotation(
        points=[[15, 25, 1], [90, 70, 0]],
        iscrowd=1,
        score=0.5,
        area=1200.5,
        segmentation=[[1, 2, 3, 4, 5, 6]],
        keypoints=[0] * 51,
        attributes={"occluded": True},
        note=None,
        embedding=list(range(500)),
    )
    [prompt] = source.read(coco(record))
    assert prompt == Prompt(
        prompt_id="7",
        image_id="1",
        image_uri=source.uri("images/a.jpg"),
        image_size=(80, 100),
        box_xyxy=(10, 20, 40, 60),
        points_xy=((15, 25), (90, 70)),
        point_labels=(1, 0),
        annotation_id="7",
        category_id=3,
        category="cat",
        iscrowd=True,
        score=0.5,
        attributes='{"area": 1200.5, "attributes": {"occluded": true}}',
    )


def test_coco_box_or_points_alone(source: Source) -> None:
    box = annotation(id=1)
    points = {"id": 2, "image_id": 1, "points": [[15, 25, 1]]}
    empty_box = annotation(id=3, bbox=[], points=[[15, 25, 1]])
    prompts = source.read(coco(box, points, empty_box))
    assert [(prompt.box_xyxy, prompt.points_xy, prompt.error) for prompt in prompts] == [
        ((10, 20, 40, 60), (), None),
        (None, ((15, 25),), None),
        (None, ((15, 25),), None),
    ]


SQUARE = [[10, 20, 30, 20, 30, 50, 10, 50]]


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        (SQUARE, (10, 20, 30, 50)),
        (SQUARE[0], (10, 20, 30, 50)),
        ([[1.5, 2, 3, 2, 3, 4], *SQUARE], (1.5, 2, 30, 50)),
        ({"size": [80, 100], "counts": [80 * 10 + 20, 30, 80 * 90 - 50]}, (10, 20, 11, 50)),
        (encode(SQUARE), (10, 20, 30, 50)),
    ],
)
def test_a_coco_mask_without_a_box_gives_its_box(
    source: Source, segmentation: Any, expected: tuple[float, ...]
) -> None:
    for bbox in ({"bbox": None}, {"bbox": []}):
        [prompt] = source.read(coco(annotation(segmentation=segmentation, **bbox)))
        assert (prompt.box_xyxy, prompt.error) == (expected, None)
    [prompt] = source.read([{"image_id": 42, "score": 0.5, "segmentation": segmentation}])
    assert (prompt.box_xyxy, prompt.error) == (expected, None)
    [prompt] = source.read(coco(annotation(segmentation=segmentation)))
    assert prompt.box_xyxy == (10, 20, 40, 60), "a box goes before the mask"


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([[1, 2, 3]], "expected polygons of at least 3 corners"),
        ([[1, 2, 3, 4, 5, "6"]], "expected polygons"),
        ({"size": [80, 100], "counts": [8000]}, "the mask is empty"),
        ({"size": [8, 10], "counts": [30, 50]}, "expected a mask of its image's size [80, 100]"),
        ({"size": [80, 100], "counts": "zz"}, "run lengths"),
        ({"size": [2**31, 2**31], "counts": "zz"}, "expected a mask of at most"),
        ({"counts": "zz"}, "expected polygons, or run lengths with their size"),
        ("mask.png", "expected polygons, or run lengths"),
        (None, "expected a box, points, or both, got neither"),
        ([], "expected a box, points, or both, got neither"),
    ],
)
def test_a_coco_mask_that_gives_no_box_says_why(source: Source, segmentation: Any, problem: str) -> None:
    [prompt] = source.read(coco(annotation(bbox=None, segmentation=segmentation)))
    assert problem in (prompt.error or "")


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([-5, -5, 20, 20], (0, 0, 15, 15)),
        ([90, 70, 20, 20], (90, 70, 100, 80)),
        ([-5, -5, 500, 500], (0, 0, 100, 80)),
        ([0.2, 0.2, 0.5, 60], (0.2, 0.2, 0.7, 60.2)),
    ],
)
def test_a_box_partly_outside_is_clipped(source: Source, bbox: list[float], expected: tuple[float, ...]) -> None:
    [prompt] = source.read(coco(annotation(bbox=bbox)))
    assert prompt.error is None
    assert prompt.box_xyxy == pytest.approx(expected)


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"bbox": [10, 20, 0, 40]}, r"the box is empty: .* got \[10\.0, 20\.0, 0\.0, 40\.0\] \(XYWH\)"),
    ({"bbox": [0, 0, 0, 0]}, "the box is empty"),
    ({"bbox": [10, 20, -3, 40]}, "the box is inverted"),
    ({"bbox": [NAN, 20, 30, 40]}, "box of finite numbers"),
    ({"bbox": [10, 20, INF, 40]}, "box of finite numbers"),
    ({"bbox": [1e308, 1e308, 1e308, 1e308]}, "box of finite numbers"),
    ({"bbox": [10**400, 20, 30, 40]}, "too large"),
    ({"bbox": [0.1, 0.2, 0.3, 0.4]}, "looks normalised: expected pixels"),
    ({"bbox": [200, 20, 30, 40]}, r"outside the image: expected a box in 100 x 80 pixels, got \[200"),
    ({"bbox": [-50, 20, 30, 40]}, "outside the image"),
    ({"bbox": [10, 20, 30]}, "expected a box of 4 numbers"),
    ({"bbox": ["10", 20, 30, 40]}, "expected a box of 4 numbers"),
    ({"bbox": [True, 20, 30, 40]}, "expected a box of 4 numbers"),
    ({"bbox": "10,20,30,40"}, "expected a box of 4 numbers"),
    ({"bbox": None}, "expected a box, points, or both, got neither"),
    ({"bbox": []}, "expected a box, points, or both, got neither"),
    ({"points": [[15, 25]]}, r"expected points as \[\[x, y, label\], \.\.\.\]"),
    ({"points": [15, 25, 1]}, r"expected points as \[\[x, y, label\], \.\.\.\]"),
    ({"points": {"x": 15}}, r"expected points as \[\[x, y, label\], \.\.\.\]"),
    ({"points": [[15, 25, 2]]}, "expected point labels 1"),
    ({"points": [[15, 25, None]]}, "expected a list of whole numbers as point labels"),
    ({"points": [[15, 25, 0]], "bbox": None}, "got background points only"),
    ({"points": [[15, NAN, 1]]}, "points of finite numbers"),
    ({"points": [[150, 25, 1]]}, "a point lies outside the image: expected points in 100 x 80 pixels"),
    ({"points": [[-1, 25, 1]]}, "a point lies outside the image"),
    ({"points": [[0.3, 0.5, 1]], "bbox": None}, "the points look normalised"),
    ({"points": [["a", 5, 1]]}, "expected a point of 2 numbers"),
    ({"image_id": 2}, "image 2 is not among the images of"),
    ({"image_id": None}, "expected an image_id, got None"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS)
def test_an_unusable_annotation_is_a_prompt_with_its_reason(
    source: Source, fields: dict[str, Any], message: str
) -> None:
    good = annotation(id=8)
    bad, after = source.read(coco(annotation(**fields), good))
    assert bad.prompt_id == "7"
    assert bad.error is not None
    assert bad.error.startswith(f"{source.uri('annotations.json')}: annotation 7: ")
    assert re.search(message, bad.error)
    assert "\n" not in bad.error
    assert after.error is None


@pytest.mark.parametrize(
    ("fields", "expected", "attributes"),
    [
        ({"category_id": "3"}, {"category_id": 3, "category": "cat"}, None),
        ({"category_id": 3.0}, {"category_id": 3, "category": "cat"}, None),
        ({"category_id": "person"}, {"category_id": None, "category": None}, {"category_id": "person"}),
        ({"category_id": 2**70}, {"category_id": None, "category": None}, {"category_id": 2**70}),
        ({"category_id": [3], "tag": 1}, {"category_id": None}, {"category_id": [3], "tag": 1}),
        ({"iscrowd": "1"}, {"iscrowd": True}, None),
        ({"iscrowd": 2}, {"iscrowd": False}, {"iscrowd": 2}),
        ({"score": "high"}, {"score": None}, {"score": "high"}),
        ({"score": NAN}, {"score": None}, {"score": "NaN"}),
        ({"score": 10**400}, {"score": None}, None),
    ],
)
def test_metadata_of_another_type_costs_no_mask(
    source: Source, fields: dict[str, Any], expected: dict[str, Any], attributes: dict[str, Any] | None
) -> None:
    [prompt] = source.read(coco(annotation(**fields)))
    assert (prompt.error, prompt.box_xyxy) == (None, (10, 20, 40, 60))
    assert {name: getattr(prompt, name) for name in expected} == expected
    assert (prompt.attributes and json.loads(prompt.attributes)) == attributes


@pytest.mark.parametrize(
    ("fields", "box", "points", "labels"),
    [
        ({"bbox": [10, 20, -3, 40]}, (10, 20, 7, 60), (), ()),
        ({"bbox": [200, 20, 30, 40]}, (200, 20, 230, 60), (), ()),
        ({"image_id": 2}, (10, 20, 40, 60), (), ()),
        ({"bbox": [NAN, 20, 30, 40], "points": [[1, 2, 1]]}, None, ((1, 2),), (1,)),
        ({"points": [[1, INF, 1], [3, 4, 1]]}, (10, 20, 40, 60), (), ()),
        ({"points": [[15, 25, 10**30]]}, (10, 20, 40, 60), ((15, 25),), ()),
    ],
)
def test_an_unusable_prompt_keeps_what_a_table_can_hold(
    source: Source, fields: dict[str, Any], box: Any, points: Any, labels: Any
) -> None:
    [prompt] = source.read(coco(annotation(**fields)))
    assert prompt.error is not None
    assert (prompt.box_xyxy, prompt.points_xy, prompt.point_labels) == (box, points, labels)


def test_all_that_is_wrong_is_told_at_once(source: Source) -> None:
    [prompt] = source.read(coco(annotation(bbox=[1, 2, 0, 0], image_id=5, points=[7])))
    assert prompt.error is not None
    assert prompt.error.count(";") == 2
    [prompt] = source.read(coco(annotation(bbox=[1, 2, 0, 0], points=[[1, 2, 5]])))
    assert prompt.error is not None
    assert "the box is empty" in prompt.error
    assert "; expected point labels 1" in prompt.error


def test_ids_as_text_or_number_are_one(source: Source) -> None:
    [prompt] = source.read(coco(annotation(image_id="1", id=7.0)))
    assert (prompt.error, prompt.image_id, prompt.prompt_id) == (None, "1", "7")


def test_annotations_without_ids_are_named_by_image_and_place(source: Source) -> None:
    records = [annotation(), annotation(), annotation(image_id=None), "nonsense"]
    for record in records[:3]:
        del record["id"]  # type: ignore[attr-defined]  # the first three are dicts
    prompts = source.read(coco(*records))
    assert [prompt.prompt_id for prompt in prompts] == ["1:0", "1:1", "record-2", "record-3"]
    assert [prompt.error is None for prompt in prompts] == [True, True, False, False]


def test_without_image_size_boxes_are_not_clipped_but_normalised_ones_are_found(source: Source) -> None:
    document = coco(annotation(bbox=[90, 70, 20, 20]), annotation(id=8, bbox=[0.1, 0.1, 0.5, 0.5]), width=None)
    pixels, normalised = source.read(document)
    assert pixels.box_xyxy == (90, 70, 110, 90)
    assert "normalised" in (normalised.error or "")


def test_text_that_no_table_can_hold_is_escaped(source: Source) -> None:
    document = coco(annotation(id="\ud800x", tag="\ud800"))
    document["categories"][0]["name"] = "\ud800"
    [prompt] = source.read(document)
    for text in (prompt.prompt_id, prompt.category, prompt.attributes):
        assert text is not None
        text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n ", "the file is empty"),
        (b'{"images": [', "not valid JSON: Expecting value at line 1, column 13"),
        (b'{"images": [], "annotations": [}', "not valid JSON"),
        (b'{"a": "\xff"}', "byte 7: expected text in UTF-8, got the byte 0xff; save the file as UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b"<html/>", "unknown format: expected COCO .* got XML of <html>"),
        (b"<annotation/>", "expected at least one annotation, got none"),
        (b"0 0.5 0.5 0.1 0.1\n", "unknown format"),
        (b"image,box\na.jpg,1\n", "unknown format"),
        (b"PAR1 and then nothing", "not a readable Parquet file"),
        ({"forms": [], "imagePath": "a.jpg"}, "unknown format: .* got an object with keys forms, imagePath"),
        ({}, "unknown format: .* got an object with no keys"),
        ({"images": []}, "unknown format"),
        ({"annotations": []}, "unknown format"),
        ([1, 2], "unknown format: .* got a list that begins with 1"),
        ([{"label": "cat"}], "unknown format: .* got a list that begins with {'label': 'cat'}"),
        ([], "expected at least one annotation, got none"),
        ({"images": [], "annotations": []}, "expected at least one annotation, got none"),
        ({"images": {}, "annotations": []}, "expected a list under 'images', got dict"),
        ({"images": [], "annotations": "x"}, "expected a list under 'annotations', got str"),
        ({"images": ["x"], "annotations": []}, r"images\[0\]: expected an object with an id, got 'x'"),
        (b'{"image": "a.jpg"}\n{"image": \n', "line 2: not valid JSON"),
        (b'{"image": "a.jpg"}\n[1]\n', r"line 2: expected a JSON object, got \[1\]"),
        (b'{"picture": "a.jpg"}\n{"picture": "a.jpg"}\n', "expected a table of prompts with a column image"),
        (
            parquet([{"image": "a.jpg", "box": [1.0]}]),
            "expected a table of prompts with .* box_xyxy, .* got box, image",
        ),
        (parquet(ROWS)[:-100], "not a readable Parquet file"),
    ],
)
def test_a_file_that_cannot_be_understood_is_one_line(source: Source, content: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as raised:
        source.read(content)
    assert str(raised.value).startswith(source.uri("annotations.json"))
    assert "\n" not in str(raised.value)


def test_missing_files_are_told_before_the_first_prompt(source: Source) -> None:
    with pytest.raises(AnnotationError, match=r"nothing\.json: no such annotation file$"):
        read_prompts(source.uri("nothing.json"), images_uri=source.uri("images"))
    annotations_uri = source.write(coco(annotation()))
    with pytest.raises(StorageError, match="no-images: expected a folder of images, found no file there"):
        read_prompts(annotations_uri, images_uri=source.uri("no-images"))
    detections_uri = source.write(DETECTIONS)
    with pytest.raises(AnnotationError, match=r"index\.json: no such annotation file"):
        read_prompts(detections_uri, images_uri=source.uri("images"), image_index_uri=source.uri("index.json"))


@pytest.mark.parametrize("index", [{"annotations": []}, [1]])
def test_an_index_without_images_is_refused(source: Source, index: Any) -> None:
    with pytest.raises(AnnotationError, match=r"index\.json: expected a COCO JSON with a list of images"):
        source.read(DETECTIONS, index=index)


def test_an_index_that_would_not_be_used_is_refused(source: Source) -> None:
    with pytest.raises(AnnotationError, match=r"index\.json: an image index is for COCO detection results"):
        source.read(coco(annotation()), index={"images": []})


def test_the_same_file_gives_the_same_prompts(source: Source) -> None:
    document = coco(annotation(b=1, a=2, points=[[15, 25, 1]]))
    assert source.read(document) == source.read(document)


def test_errors_belong_to_the_tree(source: Source) -> None:
    with pytest.raises(StableSamError):
        source.read(b"nonsense")
