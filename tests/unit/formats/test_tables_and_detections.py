"""Detection results and tables of prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stable_sam.formats.read import read_prompts
from tests.unit.formats.weak_source import DETECTIONS, ROWS, Source, parquet


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


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"\xef\xbb\xbf\n" + b"\n\n".join(json.dumps(row).encode() for row in rows) + b"\n"


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
