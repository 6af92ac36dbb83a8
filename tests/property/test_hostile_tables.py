"""Tables of every kind of value: read by column or row by row, the prompts are the same."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stable_sam.errors import StableSamError
from stable_sam.formats.read import read_prompt_batches, read_prompts
from stable_sam.table.schema import PROMPTS_SCHEMA, prompt_from_row

NAMES = ("a.jpg", "deep/b.jpg", "ü b.jpg")
few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

images = st.sampled_from(
    [
        *NAMES,
        *NAMES,
        "images/a.jpg",
        "./a.jpg",
        "missing.jpg",
        "../a.jpg",
        "/etc/passwd",
        "http://x/a.jpg?token=t",
        "",
        None,
    ]
)
near = st.floats(-50, 300)
coordinates = st.one_of(near, near, near, st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, 1e308, -1e308, 0.3]))
boxes = st.one_of(
    st.lists(coordinates, min_size=4, max_size=4),
    st.tuples(near, near, st.floats(2, 90), st.floats(2, 90)).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]),
    st.lists(st.one_of(coordinates, st.none()), max_size=5),
    st.none(),
)
points = st.one_of(st.none(), st.lists(st.lists(near, min_size=2, max_size=2), max_size=2))
texts = st.one_of(st.none(), st.text(max_size=4), st.sampled_from(["7", "x" * 600, "\x1b[2J"]))
integers = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([2**63 - 1, -(2**63), 2**53 + 1]))
doubles = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 7.0, 0.5, -1.0, math.nan, math.inf, 2.0**60]))

columns = {
    "image": st.just((images, pa.string())),
    "box_xyxy": st.sampled_from([(boxes, pa.list_(pa.float64())), (boxes, pa.large_list(pa.float32()))]),
    "bbox_xywh": st.just((st.one_of(st.none(), st.none(), boxes), pa.list_(pa.float64()))),
    "points_xy": st.just((points, pa.list_(pa.list_(pa.float64())))),
    "point_labels": st.just((st.one_of(st.none(), st.lists(st.integers(0, 2), max_size=2)), pa.list_(pa.int64()))),
    "prompt_id": st.sampled_from([(texts, pa.string()), (integers, pa.int64()), (doubles, pa.float64())]),
    "annotation_id": st.sampled_from([(texts, pa.large_string()), (integers, pa.int64())]),
    "category_id": st.sampled_from([(integers, pa.int64()), (doubles, pa.float64()), (texts, pa.string())]),
    "category": st.sampled_from(
        [(texts, pa.string()), (texts, pa.dictionary(pa.int32(), pa.string())), (integers, pa.int64())]
    ),
    "iscrowd": st.sampled_from([(st.one_of(st.none(), st.booleans()), pa.bool_()), (integers, pa.int64())]),
    "score": st.sampled_from([(doubles, pa.float64()), (doubles, pa.float32()), (integers, pa.int64())]),
    "attributes": st.just((st.sampled_from([None, '{"a": 1}', "[1]", "{", '{"a": NaN}']), pa.string())),
    "note": st.sampled_from([(texts, pa.string()), (doubles, pa.float64())]),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    chosen = draw(st.sets(st.sampled_from(sorted(set(columns) - {"image", "box_xyxy"})), max_size=5))
    length = draw(st.integers(1, 12))
    arrays = {}
    for name in ["image", "box_xyxy", *sorted(chosen)]:
        values, kind = draw(columns[name])
        arrays[name] = pa.array(draw(st.lists(values, min_size=length, max_size=length)), kind)
    return pa.table(arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    for name in NAMES:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def both_ways(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows, after checking that both readers agree on them."""
    uri, images_uri = str(folder / name), str(folder / "images")
    one_by_one = list(read_prompts(uri, images_uri=images_uri))
    batches = list(read_prompt_batches(uri, images_uri=images_uri))
    assert all(batch.schema == PROMPTS_SCHEMA for batch in batches)
    rows = [row for batch in batches for row in batch.to_pylist()]
    # By their text: of equal numbers 0.0 and -0.0 would give other fingerprints.
    assert [repr(prompt_from_row(row)) for row in rows] == [repr(prompt) for prompt in one_by_one]
    return rows


def check(rows: list[dict[str, Any]], folder: Path) -> None:
    for row in rows:
        assert row["prompt_id"]
        assert row["image_uri"] == "" or row["image_uri"] in {f"{folder}/images/{name}" for name in NAMES}
        assert row["image_uri"] or row["error"]
        assert (row["error"] or "").isprintable()
        assert "token=t" not in f"{row['error']} {row['image_id']}"
        assert sum(len(value) for value in row.values() if isinstance(value, str)) < 6000


@few
@given(table=tables(), row_group=st.sampled_from([1, 5, 100]))
def test_parquet_by_column_and_row_by_row(folder: Path, table: pa.Table, row_group: int) -> None:
    pq.write_table(table, folder / "t.parquet", row_group_size=row_group)
    rows = both_ways(folder, "t.parquet")
    assert len(rows) == table.num_rows
    check(rows, folder)


@few
@given(table=tables())
def test_json_lines_by_column_and_row_by_row(folder: Path, table: pa.Table) -> None:
    lines = [{k: v for k, v in row.items() if v is not None or k == "image"} for row in table.to_pylist()]
    (folder / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = both_ways(folder, "t.jsonl")
    assert len(rows) == table.num_rows
    check(rows, folder)


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
records = st.fixed_dictionaries(
    {"image_id": st.one_of(st.integers(1, 3), st.integers(1, 3), anything)},
    optional={
        "id": st.one_of(st.integers(0, 9), anything),
        "bbox": st.one_of(boxes, boxes, anything),
        "category_id": st.one_of(st.integers(0, 3), doubles, anything),
        "iscrowd": st.one_of(st.integers(0, 2), anything),
        "score": st.one_of(st.floats(0, 1), anything),
        "points": st.one_of(st.just([[5, 5, 1]]), anything),
        "area": anything,
    },
)
entries = st.fixed_dictionaries(
    {"id": st.integers(1, 3)},
    optional={
        "file_name": st.one_of(images, anything),
        "width": anything,
        "height": st.one_of(st.integers(1, 300), anything),
    },
)


@few
@given(
    annotations=st.lists(st.one_of(records, anything), min_size=1, max_size=8),
    entries=st.lists(entries, max_size=4),
    order=st.permutations(["images", "annotations", "categories", "info"]),
)
def test_coco_by_column_and_row_by_row(
    folder: Path, annotations: list[Any], entries: list[Any], order: list[str]
) -> None:
    parts = {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "c"}], "info": {"a": [1]}}
    (folder / "c.json").write_text(json.dumps({key: parts[key] for key in order}))
    rows = both_ways(folder, "c.json")
    assert len(rows) == len(annotations)
    check(rows, folder)


@few
@given(records=st.lists(records, min_size=1, max_size=8))
def test_detections_by_column_and_row_by_row(folder: Path, records: list[Any]) -> None:
    (folder / "d.json").write_text(json.dumps(records))
    rows = both_ways(folder, "d.json")
    assert len(rows) == len(records)
    check(rows, folder)


words = b'PAR1 { } [ ] , : " "image": "images": "annotations": "image_id": "bbox": "a.jpg" null NaN 1e999 - 0 1'
fragments = st.sampled_from([*words.split(), b"\\u", b"\\ud800", b"\n", b" ", b"\xff", b"\x00", b"\xef\xbb\xbf"])


@settings(few, max_examples=80)
@given(parts=st.lists(st.one_of(fragments, fragments, st.binary(max_size=6)), max_size=25))
def test_any_bytes_are_prompts_or_one_line(folder: Path, parts: list[bytes]) -> None:
    (folder / "any").write_bytes(b"".join(parts))
    with suppress(StableSamError):
        check(both_ways(folder, "any"), folder)


@pytest.fixture(scope="module")
def parquet() -> bytes:
    table = pa.table({"image": ["a.jpg", "ü b.jpg"], "box_xyxy": [[1.0, 2.0, 30.0, 40.0]] * 2, "note": ["ü", "x"]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


@settings(few, max_examples=80)
@given(changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=3), cut=st.integers(0, 9))
def test_a_damaged_parquet_file_is_prompts_or_one_line(
    folder: Path, parquet: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(parquet)
    for position, value in changes:
        data[4 + position % (len(data) - 4)] = value
    (folder / "damaged").write_bytes(data[: len(data) - cut] if cut == 9 else data)
    with suppress(StableSamError):
        check(both_ways(folder, "damaged"), folder)
