"""Files that come back for review, and calibrations, of strangers: told in one line, whatever they say."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stable_sam.config.calibration import Calibration
from stable_sam.errors import AnnotationError, ConfigError
from stable_sam.formats.export_records import SENT
from stable_sam.formats.registry import REVIEW_READERS
from stable_sam.formats.review_files import open_files
from stable_sam.formats.review_records import MAX_PIXELS, Answer, collect
from tests.fuzz import seeds

HUGE = 10**400
Change = Callable[[Any], Any]


def read(form: str, folder: Path, **changed: bytes) -> tuple[list[Answer], list[str]]:
    """What an export of two masks says when it comes back, with `own` (the tool's file) or `sent` as given."""
    own, sent = seeds.EXPORTED[form].items()
    for (path, content), name in ((own, "own"), (sent, "sent")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(changed.get(name, content))
    return collect(REVIEW_READERS[form](open_files(str(folder))))


def edited(form: str, path: str, change: Change) -> bytes:
    """A JSON file of the export, with what `change` makes of one place in it; `path`: keys and numbers with slashes."""
    own, sent = seeds.EXPORTED[form].items()
    document = place = json.loads((sent if path.startswith("sent:") else own)[1])
    *parents, last = (int(key) if key.isdigit() else key for key in path.removeprefix("sent:").split("/"))
    for key in parents:
        place = place[key]
    place[last] = change(place[last])
    return json.dumps(document).encode()


@pytest.mark.parametrize("form", REVIEW_READERS)
def test_what_the_fuzzer_starts_from_is_read(form: str, tmp_path: Path) -> None:
    answers, problems = read(form, tmp_path)
    assert problems == []
    assert [(answer.prompt_id, answer.revision) for answer in answers] == [("p1", 1), ("p2", 1)]
    assert all(answer.mask is not None and answer.mask.area == 8 for answer in answers)


@pytest.mark.parametrize("form", REVIEW_READERS)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("images/0/sent", 5),
        ("images/0/sent", [5]),
        ("images/0/sent/0/prompt_id", ["p1"]),
        ("images/0/sent/0/revision", "1"),
        ("images/0/sent/0/revision", HUGE),
        ("images/0/size", [7, "9"]),
        ("images/0/size", [7]),
        ("images/0/size", [MAX_PIXELS, 2]),
        ("images/0/name", 7),
        ("images/0", None),
    ],
)
def test_a_broken_list_of_what_was_sent(form: str, path: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=f"{SENT}: expected the list of an export"):
        read(form, tmp_path, sent=edited(form, f"sent:{path}", lambda _: value))


@pytest.mark.parametrize(("form", "key"), [("cvat", "id"), ("png", "file"), ("png", "value"), ("yolo", "mask")])
@pytest.mark.parametrize("value", [None, [1]])
def test_the_list_of_another_format(form: str, key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=f"{SENT}: image a.jpg: expected {key} of each object"):
        read(form, tmp_path, sent=edited(form, f"sent:images/0/sent/1/{key}", lambda _: value))


@pytest.mark.parametrize("counts", ["~~", "o" * 50, "P", ""])
def test_masks_in_the_list_that_pycocotools_would_write_outside_its_memory_for(counts: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="image a.jpg: mask: expected"):
        read("yolo", tmp_path, sent=edited("yolo", "sent:images/0/sent/0/mask", lambda _: counts))


@pytest.mark.parametrize(
    ("form", "path", "value", "message"),
    [
        ("coco", "images/0/id", [1], "expected id, file_name, height and width"),
        ("coco", "images/0/height", MAX_PIXELS, "expected id, file_name, height and width"),
        ("labelme", "imageHeight", MAX_PIXELS, "expected a LabelMe file with shapes, imageHeight and imageWidth"),
        ("labelstudio", "0/annotations", 5, "expected a list of annotations, got 5"),
        ("labelstudio", "0/annotations/0/result", 5, "expected a list of results, got 5"),
        ("labelstudio", "0/data/stable_sam/sent", {"r": {"prompt_id": [1], "revision": 1}}, "what the export wrote"),
        ("labelstudio", "0/data/stable_sam/sent", {"r": {"prompt_id": "p", "revision": HUGE}}, "what the export wrote"),
    ],
)
def test_files_that_are_not_what_they_seem(form: str, path: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=message):
        read(form, tmp_path, own=edited(form, path, lambda _: value))


@pytest.mark.parametrize(
    ("form", "path", "value", "problem"),
    [
        ("coco", "annotations/0/segmentation/counts", [HUGE], "expected run lengths that add up to the image"),
        ("coco", "annotations/0/segmentation", {"size": [7.5, 9], "counts": [63]}, "expected a mask of"),
        ("labelme", "shapes/0/points", [[HUGE, 1], [2, 2], [3, 1]], "int too large to convert to float"),
        ("labelme", "shapes/0/points", 5, "not iterable"),
        (
            "labelstudio",
            "0/annotations/0/result/0/original_height",
            MAX_PIXELS,
            "expected a region with value, original_width",
        ),
        ("labelstudio", "0/annotations/0/result/0/value", {"points": [5]}, "not iterable"),
    ],
)
def test_a_shape_that_cannot_be_read(form: str, path: str, value: Any, problem: str, tmp_path: Path) -> None:
    answers, problems = read(form, tmp_path, own=edited(form, path, lambda _: value))
    assert [answer.prompt_id for answer in answers] == ["p2"]
    assert len(problems) == 1
    assert problem in problems[0]


def test_a_size_in_other_numbers_is_that_size(tmp_path: Path) -> None:
    runs = {"size": [7.0, 9.0], "counts": [0, 2, 61]}
    answers, problems = read("coco", tmp_path, own=edited("coco", "annotations/0/segmentation", lambda _: runs))
    assert problems == []
    assert answers[0].mask is not None
    assert answers[0].mask.area == 2


def png(width: int, height: int) -> bytes:
    """One that says it has so many pixels, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (png(2**31 - 1, 2**31 - 1), "expected 9 x 7 pixels as sent, got 2147483647 x 2147483647"),
        (png(30_000, 30_000), "expected 9 x 7 pixels as sent, got 30000 x 30000"),
        (b"", "expected a PNG of one channel"),
        (seeds.picture("PNG"), "expected a PNG of one channel"),
        (seeds.picture("JPEG"), "expected a PNG of one channel"),
    ],
)
def test_an_image_of_another_size_is_not_decoded(content: bytes, problem: str, tmp_path: Path) -> None:
    answers, problems = read("png", tmp_path, own=content)
    assert answers == []
    assert [problem in told for told in problems] == [True, True]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(png(30_000, 30_000), "expected a mask inside its image"), (b"GIF89a", "expected a mask as PNG in base64")],
)
def test_a_mask_of_another_size_is_not_decoded(content: bytes, problem: str, tmp_path: Path) -> None:
    shape = {"shape_type": "mask", "points": [[0, 0], [9, 7]], "mask": b64encode(content).decode()}
    answers, problems = read("labelme", tmp_path, own=edited("labelme", "shapes/0", lambda old: old | shape))
    assert [answer.prompt_id for answer in answers] == ["p2"]
    assert problem in problems[0]


def test_half_a_surrogate_pair_is_an_id_like_any_other(tmp_path: Path) -> None:
    path = next(iter(seeds.EXPORTED["labelme"]))
    changed = edited("labelme", "stable_sam/sent", lambda sent: sent | {"\ud800": 1}).replace(
        b'"prompt_id": "p1"', b'"prompt_id": "\\ud800"'
    )
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(changed)
    answers, _ = collect(REVIEW_READERS["labelme"](open_files(str(tmp_path))))
    assert [answer.prompt_id for answer in answers] == ["\\ud800", "p2", "p1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "expected a calibration as JSON"),
        (b"{" + b'"a":{' * 100_000, "expected a calibration as JSON"),
        (b"\xff", "expected a calibration as JSON"),
        (b"[]", "expected a calibration, got list"),
        (b'{"intercept": NaN}', "intercept: Input should be a finite number"),
        (b'{"intercept": 1e999}', "intercept: Input should be a finite number"),
        (b'{"curves": {"score": {"x": [0, NaN], "y": [0, 1]}}}', "curves.score.x.1: Input should be a finite number"),
    ],
)
def test_a_hostile_calibration(content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Calibration.from_json(content, "x.json")


@pytest.mark.parametrize("form", REVIEW_READERS)
def test_a_packed_file_that_came_back_is_named_as_such(form: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="got a gzip file: unpack it"):
        read(form, tmp_path, own=gzip.compress(b"{}"))
