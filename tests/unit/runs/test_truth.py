"""True masks beside a run's prompts: which is whose, and what a truth file must hold."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import duckdb
import pytest
from PIL import Image

from stable_sam.errors import AnnotationError
from stable_sam.records import Prompt
from stable_sam.runs.manifest import ShardPlan
from stable_sam.runs.truth import TrueMask, check_truth_sizes, cut_truth, load_truth, match, read_stored_truth
from stable_sam.runs.truth_score import average_precision


def true_mask(
    annotation_id: str, box_xywh: tuple[float, float, float, float], category: str | None = "cat"
) -> TrueMask:
    return TrueMask(annotation_id=annotation_id, category=category, rle={}, box_xywh=box_xywh)


OBJECTS = [
    true_mask("1", (0, 0, 10, 10)),
    true_mask("2", (0, 0, 9, 10)),
    true_mask("3", (0, 0, 10, 10), "dog"),
    true_mask("4", (50, 50, 10, 10)),
]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"box_xyxy": (0, 0, 10, 10)}, "1"),
        ({"box_xyxy": (0, 0, 10, 10), "annotation_id": "2"}, "2"),
        # The same number in another file.
        ({"box_xyxy": (0, 0, 10, 10), "annotation_id": "4"}, "1"),
        ({"box_xyxy": (0, 0, 10, 10), "annotation_id": "3"}, "1"),
        ({"box_xyxy": (0, 0, 9, 10), "category": "dog"}, "3"),
        ({"box_xyxy": (0, 0, 9, 10), "category": None}, "2"),
        ({"box_xyxy": (0, 0, 9, 10), "category": "bird"}, None),
        # Enough of the box, and too little.
        ({"box_xyxy": (0, 0, 10, 39)}, "1"),
        ({"box_xyxy": (0, 0, 10, 41)}, None),
        ({"box_xyxy": (100, 0, 110, 10), "annotation_id": "1"}, None),
        # Points say nothing without an id.
        ({"points_xy": ((5, 5),), "annotation_id": "2"}, "2"),
        ({"points_xy": ((5, 5),)}, None),
    ],
)
def test_a_prompt_and_its_object(fields: dict[str, Any], expected: str | None) -> None:
    prompt = Prompt(**({"prompt_id": "p", "image_id": "1", "image_uri": "a.jpg", "category": "cat"} | fields))
    found = match(prompt, OBJECTS)
    assert (None if found is None else found.annotation_id) == expected
    assert match(prompt, []) is None


def square(x: int, y: int, side: int) -> list[list[int]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def truth_file(path: Path, **changes: Any) -> str:
    document = {
        # The annotations first: nothing is known of their images then.
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": square(2, 2, 4)},
            {"id": 2, "image_id": 7, "segmentation": {"size": [20, 30], "counts": [0, 40, 560]}, "iscrowd": 1},
            {"id": 3, "image_id": 9, "category_id": 3, "segmentation": square(0, 0, 4)},
        ],
        "categories": [{"id": 3, "name": "cat"}],
        "images": [
            {"id": 7, "file_name": "b/one.jpg", "height": 20, "width": 30},
            {"id": 8, "file_name": "two.jpg", "height": 20, "width": 30},
            {"id": 9, "file_name": "one.jpg", "height": 20, "width": 30},
        ],
        "info": {"year": 2026},
    }
    path.write_text(json.dumps(document | changes))
    return str(path)


@pytest.fixture
def connection() -> duckdb.DuckDBPyConnection:
    made = duckdb.connect()
    made.execute("CREATE TABLE cut(image_uri VARCHAR, image_id VARCHAR, place BIGINT, shard INTEGER)")
    uris = ["s3://a/b/one.jpg", "s3://a/two.jpg", "s3://a/none.jpg", "s3://a/someone.jpg"]
    made.executemany("INSERT INTO cut VALUES (?, '1', ?, ?)", [[uri, k, 2 * k] for k, uri in enumerate(uris)])
    return made


def test_true_masks_go_with_the_shards_of_their_images(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    uri = truth_file(tmp_path / "truth.json")
    assert load_truth(connection, uri)
    shards = [
        ShardPlan(shard_id=str(k), uri=str(tmp_path / "run" / f"{k}.parquet"), prompts=1, images=1) for k in range(4)
    ]
    known = cut_truth(connection, shards, uri)
    assert [shard.truth for shard in known] == [2, 1, 0, 0]
    first, second = (read_stored_truth(shard).to_pylist() for shard in known[:2])
    # The longer name is the nearer one: b/one.jpg, and not one.jpg.
    assert [(row["annotation_id"], row["category"], row["iscrowd"]) for row in first] == [
        ("1", "cat", False),
        ("2", None, True),
    ]
    assert [row["mask_size"] for row in first] == [[20, 30]] * 2
    # An image that the truth knows to be empty.
    assert [(row["image_uri"], row["mask_counts"]) for row in second] == [("s3://a/two.jpg", None)]
    assert read_stored_truth(known[2]).num_rows == 0


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_in_another_unicode_form_is_the_same_name(form: Any, tmp_path: Path) -> None:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE cut(image_uri VARCHAR, image_id VARCHAR, place BIGINT, shard INTEGER)")
    name = "Küche/é.jpg"
    connection.execute("INSERT INTO cut VALUES (?, '1', 0, 0)", [f"/data/{unicodedata.normalize(form, name)}"])
    other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], name)
    truth = truth_file(tmp_path / "t.json", images=[{"id": 7, "file_name": other, "height": 20, "width": 30}])
    assert load_truth(connection, truth)
    ((uri, annotation_id),) = connection.execute("SELECT image_uri, annotation_id FROM truth LIMIT 1").fetchall()
    assert (uri, annotation_id) == (f"/data/{unicodedata.normalize(form, name)}", "1")


@pytest.mark.parametrize(
    ("turn", "size_hw", "problem"),
    [
        (1, (20, 30), None),
        (6, (30, 20), None),
        (6, (20, 30), "before EXIF orientation 6 turns them"),
        (1, (40, 60), "the upright image has 30 x 20"),
    ],
)
def test_truth_of_another_size_than_the_upright_image_is_refused(
    turn: int, size_hw: tuple[int, int], problem: str | None, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", (30, 20)).save(tmp_path / "one.jpg", exif=exif)
    connection = duckdb.connect()
    connection.execute("CREATE TABLE cut(image_uri VARCHAR, image_id VARCHAR, place BIGINT, shard INTEGER)")
    connection.execute(
        "INSERT INTO cut VALUES (?, '1', 0, 0), (?, '2', 0, 0)", [f"{tmp_path}/one.jpg", "/gone/two.jpg"]
    )
    height, width = size_hw
    images = [
        {"id": n, "file_name": name, "height": height, "width": width} for n, name in ((7, "one.jpg"), (8, "two.jpg"))
    ]
    truth = truth_file(tmp_path / "truth.json", images=images)
    assert load_truth(connection, truth)
    if problem is None:
        check_truth_sizes(connection, truth)
        return
    with pytest.raises(AnnotationError) as raised:
        check_truth_sizes(connection, truth)
    assert str(raised.value).startswith(f"{truth}: image {tmp_path}/one.jpg: expected the declared {width} x {height}")
    assert problem in str(raised.value)


def test_the_digest_is_of_what_counts(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    def digest(**changes: Any) -> str:
        found = load_truth(connection.cursor(), truth_file(tmp_path / "truth.json", **changes))
        connection.execute("DROP TABLE truth; DROP TABLE truth_images; DROP TABLE truth_categories")
        connection.execute("DROP TABLE truth_annotations")
        return found

    plain = digest()
    assert digest(info={}) == plain
    assert digest(categories=[{"id": 3, "name": "dog"}]) != plain
    assert digest(annotations=[]) != plain
    assert digest(images=[{"id": 1, "file_name": "elsewhere.jpg", "height": 2, "width": 3}]) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"id": 1, "image_id": 7}]}, "annotations[0]: expected an annotation with id, image_id and"),
        ({"annotations": [3]}, "annotations[0]: expected an annotation"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}]}, "images[0]: expected an image with id, file_name, height"),
        ({"images": [{"id": 1, "height": 2, "width": 3}]}, "images[0]: expected an image with id, file_name, height"),
        ({"categories": [{"id": 1}]}, "categories[0]: expected a category with id and name"),
        ({"images": {}}, "expected COCO instances as truth, found no list images"),
    ],
)
def test_what_is_no_truth(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    uri = truth_file(tmp_path / "truth.json", **changes)
    with pytest.raises(AnnotationError) as raised:
        load_truth(connection, uri)
    assert str(raised.value).startswith(f"{uri}: {message}")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "expected a polygon of at least 3 corners"),
        ([[1, 2, 3, 4, 5, "6"]], "expected a polygon of numbers"),
        ([[1, 2, 3, 4, 5, 1e300]], "expected a polygon of numbers, near the image"),
        ({"size": [30, 20], "counts": "0"}, "expected a mask of its image's size [20, 30]"),
        ({"size": [20, 30], "counts": [5]}, "expected run lengths that add up to the image"),
        ({"size": [20, 30], "counts": "junk~"}, "expected compressed run lengths"),
        ("mask.png", "expected a segmentation"),
    ],
)
def test_a_true_mask_that_is_none(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, segmentation: Any, message: str
) -> None:
    uri = truth_file(tmp_path / "truth.json", annotations=[{"id": 5, "image_id": 7, "segmentation": segmentation}])
    load_truth(connection, uri)
    shards = [ShardPlan(shard_id=str(k), uri=str(tmp_path / f"{k}.parquet"), prompts=1, images=1) for k in range(4)]
    with pytest.raises(AnnotationError) as raised:
        cut_truth(connection, shards, uri)
    assert str(raised.value).startswith(f"{uri}: annotation 5: {message}")


def test_no_truth_is_no_figure() -> None:
    assert average_precision(["a.jpg"], [], []) == (None, None, None)
