"""Annotation files of every supported format, good and bad, to prompts: one prompt for each annotation, always."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stable_sam.errors import AnnotationError, StableSamError, StorageError
from stable_sam.formats.read import read_prompt_batches, read_prompts
from stable_sam.records import Prompt
from stable_sam.rle import encode_segmentation
from stable_sam.storage import files as storage
from stable_sam.table.schema import prompt_from_row

NAN, INF = float("nan"), float("inf")


def encode(polygons: list[list[float]]) -> dict[str, Any]:
    mask = encode_segmentation(polygons, (80, 100))
    return {"size": list(mask.size_hw), "counts": mask.counts}


class Source:
    """A folder of (empty) image files and one annotation file beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("a.jpg", "b.jpg", "000000000042.jpg", "deep/c.jpg"):
            storage.write_bytes(str(root / "images" / name), b"")
        storage.write_bytes(str(root / "secret.jpg"), b"")

    def uri(self, name: str) -> str:
        return str(self.root / name)

    def write(self, content: Any, name: str = "annotations.json") -> str:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        storage.write_bytes(self.uri(name), data)
        return self.uri(name)

    def read(self, content: Any, *, index: Any = None, images: str = "images") -> list[Prompt]:
        index_uri = None if index is None else self.write(index, "index.json")
        where: dict[str, Any] = {"images_uri": self.uri(images), "image_index_uri": index_uri}
        prompts = list(read_prompts(self.write(content), **where))
        batches = read_prompt_batches(self.uri("annotations.json"), **where)
        assert [prompt_from_row(row) for batch in batches for row in batch.to_pylist()] == prompts
        return prompts


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def coco(*annotations: Any, **image: Any) -> dict[str, Any]:
    entry = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80} | image
    return {"images": [entry], "annotations": list(annotations), "categories": [{"id": 3, "name": "cat"}]}


def annotation(**fields: Any) -> dict[str, Any]:
    return {"id": 7, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40], "iscrowd": 0} | fields


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


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("a.jpg", "images/a.jpg"),
        ("images/a.jpg", "images/a.jpg"),
        ("./a.jpg", "images/a.jpg"),
        ("deep/c.jpg", "images/deep/c.jpg"),
        ("images\\deep\\c.jpg", "images/deep/c.jpg"),
    ],
)
def test_image_names_are_found_below_the_folder(source: Source, file_name: str, expected: str) -> None:
    [prompt] = source.read(coco(annotation(), file_name=file_name))
    assert (prompt.image_uri, prompt.error) == (source.uri(expected), None)


def test_image_names_that_begin_with_the_folder_also_work_from_above(source: Source) -> None:
    document = coco(annotation(), file_name="images/a.jpg")
    [prompt] = source.read(document, images=".")
    assert prompt.error is None
    assert prompt.image_uri.endswith("images/a.jpg")


@pytest.mark.parametrize(
    "file_name",
    [
        *(
            "missing.jpg",
            "a.jp",
            "other/c.jpg",
            "s3://bucket/secret.jpg",
            "\ud800.jpg",
            "",
            " ",
            ".",
            "./",
            None,
            7,
            ["a.jpg"],
        ),
        *("../secret.jpg", "deep/../../secret.jpg", "..\\secret.jpg", "/etc/passwd", "C:\\secret.jpg"),
    ],
)
def test_image_names_that_are_missing_or_lead_out_fail(source: Source, file_name: Any) -> None:
    [prompt] = source.read(coco(annotation(), file_name=file_name))
    assert prompt.image_uri == ""
    assert prompt.error is not None
    assert "image file" in prompt.error


def test_an_absolute_name_fails_even_if_it_exists(source: Source) -> None:
    [prompt] = source.read(coco(annotation(), file_name=source.uri("secret.jpg")))
    assert "leads out of it" in (prompt.error or "")


def test_an_image_id_that_stands_for_two_files_fails(source: Source) -> None:
    document = coco(annotation())
    document["images"].append({"id": 1, "file_name": "b.jpg"})
    [prompt] = source.read(document)
    assert "image id 1 stands for two files: 'a.jpg' and 'b.jpg'" in (prompt.error or "")


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


DETECTIONS = [
    {"image_id": 42, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.9},
    {"image_id": 42, "category_id": 3, "bbox": [5, 6, 7, 8], "score": 0.8},
    {"image_id": 9, "category_id": 3, "bbox": [5, 6, 7, 8], "score": 0.7},
    {"image_id": 42, "category_id": 4, "bbox": [9, 9, 9, 9], "score": 0.6},
]


def test_detections_with_an_index(source: Source) -> None:
    index = {
        "images": [{"id": 42, "file_name": "a.jpg", "width": 6, "height": 80}, {"id": 9, "file_name": "b.jpg"}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    prompts = source.read(DETECTIONS, index=index)
    assert [prompt.prompt_id for prompt in prompts] == ["42:0", "42:1", "9:0", "42:2"]
    assert [prompt.category for prompt in prompts] == ["cat", "cat", "cat", None]
    assert [prompt.score for prompt in prompts] == [0.9, 0.8, 0.7, 0.6]
    assert prompts[1].box_xyxy == (5, 6, 6, 14)
    assert prompts[2].image_uri == source.uri("images/b.jpg")
    assert "outside the image" in (prompts[3].error or "")


def test_detections_by_coco_file_names(source: Source) -> None:
    prompts = source.read([*DETECTIONS, {"image_id": "cat", "bbox": [1, 2, 3, 4]}])
    assert prompts[0].image_uri == source.uri("images/000000000042.jpg")
    assert prompts[0].error is None
    assert "'000000000009.jpg' is not below" in (prompts[2].error or "")
    assert "expected a number as image_id, a file_name or an image index, got image_id 'cat'" in (
        prompts[4].error or ""
    )


ROWS: list[dict[str, Any]] = [
    {"prompt_id": "p1", "image": "a.jpg", "box_xyxy": [1.0, 2.0, 30.0, 40.0], "category": "cat", "score": 0.5},
    {"prompt_id": None, "image": "deep/c.jpg", "bbox_xywh": [1.0, 2.0, 30.0, 40.0], "iscrowd": 1, "source": "yolo"},
    {"prompt_id": None, "image": "deep/c.jpg", "points_xy": [[5.0, 6.0], [7.0, 8.0]], "point_labels": [1, 0]},
    {"prompt_id": "p4", "image": "images/b.jpg", "points_xy": [[5.0, 6.0]], "attributes": '{"a": 1}'},
    {"prompt_id": "p11", "image": "a.jpg", "box_xyxy": [1.0, 2.0, 3.0, 4.0], "attributes": "not JSON"},
    {"prompt_id": "p5", "image": "a.jpg", "box_xyxy": [1.0, 2.0, 3.0, 4.0], "bbox_xywh": [1.0, 2.0, 3.0, 4.0]},
    {"prompt_id": "p6", "image": "a.jpg", "points_xy": [[5.0, 6.0]], "point_labels": [1, 1]},
    {"prompt_id": "p7", "image": "a.jpg", "point_labels": [1]},
    {"prompt_id": "p8", "image": "../secret.jpg", "box_xyxy": [1.0, 2.0, 30.0, 40.0]},
    {"prompt_id": None, "image": None, "box_xyxy": [1.0, 2.0, 30.0, 40.0]},
    {"prompt_id": "p10", "image": "a.jpg", "box_xyxy": [30.0, 2.0, 3.0, 40.0]},
]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"\xef\xbb\xbf\n" + b"\n\n".join(json.dumps(row).encode() for row in rows) + b"\n"


def parquet(rows: list[dict[str, Any]]) -> bytes:
    columns = sorted({column for row in rows for column in row})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({column: [row.get(column) for row in rows] for column in columns}), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("write", [json_lines, parquet])
def test_tables(source: Source, write: Any) -> None:
    prompts = source.read(write(ROWS))
    assert len(prompts) == len(ROWS)
    good = prompts[:5]
    assert [prompt.error for prompt in good] == [None] * 5
    assert [prompt.prompt_id for prompt in prompts[:4]] == ["p1", "deep/c.jpg:0", "deep/c.jpg:1", "p4"]
    assert good[0].box_xyxy == (1, 2, 30, 40)
    assert (good[0].category, good[0].score, good[0].image_id) == ("cat", 0.5, "a.jpg")
    assert good[1].box_xyxy == (1, 2, 31, 42)
    assert good[1].iscrowd
    assert good[1].attributes == '{"source": "yolo"}'
    assert (good[2].points_xy, good[2].point_labels) == (((5, 6), (7, 8)), (1, 0))
    assert (good[3].point_labels, good[3].attributes) == ((1,), '{"a": 1}')
    assert good[3].image_uri == source.uri("images/b.jpg")
    assert good[4].attributes == '{"attributes": "not JSON"}'
    reasons = [
        "got both",
        "expected 1 point labels",
        "got no points",
        "leads out of it",
        "expected the name of an image",
    ]
    reasons += ["the box is inverted"]
    for prompt, reason in zip(prompts[5:], reasons, strict=True):
        assert reason in (prompt.error or ""), prompt
    assert prompts[9].prompt_id == "row-9"


def test_rows_may_name_images_by_a_uri_or_an_absolute_path_below_the_folder(source: Source) -> None:
    uri, absolute = f"file://{source.uri('images/a.jpg')}", source.uri("images/a.jpg")
    prompts = source.read(json_lines([{"image": name, "bbox_xywh": [1, 2, 3, 4]} for name in (uri, absolute)]))
    assert [(prompt.image_id, prompt.image_uri) for prompt in prompts] == [(uri, absolute), (absolute, absolute)]


def test_a_uri_below_the_image_folder_is_checked(source: Source) -> None:
    folder = Path(source.uri("images")).as_uri()
    uri = source.write(
        json_lines([{"image": f"{folder}/{name}", "bbox_xywh": [1, 2, 3, 4]} for name in ("a.jpg", "x")])
    )
    found, missing = read_prompts(uri, images_uri=folder)
    assert found.error is None
    assert "does not exist" in (missing.error or "")


def test_a_table_of_one_line(source: Source) -> None:
    [prompt] = source.read({"image": "a.jpg", "box_xyxy": [1, 2, 30, 40]})
    assert (prompt.prompt_id, prompt.error) == ("a.jpg:0", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n ", "the file is empty"),
        (b'{"images": [', "not valid JSON: Expecting value at line 1, column 13"),
        (b'{"images": [], "annotations": [}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON: .*utf-8"),
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
