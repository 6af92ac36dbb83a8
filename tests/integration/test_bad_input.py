"""What bad input gets: one line before any work starts where that can be known, else a failed row with its reason."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows import cli
from stable_sam.table.query import query

Folder = Path
Options = dict[str, str]


def refused(options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which `stable-sam refine` refuses `options`, without its first word."""
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["stable-sam", "refine", *arguments])
    # A flow that started all the same would fail here at once.
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert (end.value.code, shown.out, line[:7]) == (2, "", "error: ")
    return line[7:]


def text(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


def coco(**parts: Any) -> str:
    return json.dumps({"images": [], "annotations": [], "categories": []} | parts)


# name, options that replace the good ones, what the line must name
BEFORE_WORK: list[tuple[str, Callable[[Folder], Options], list[str]]] = [
    ("missing file", lambda t: {"annotations": "no.json"}, ["no.json", "no such annotation file"]),
    ("unknown format", lambda t: {"annotations": text(t / "a.xml", "<html/>")}, ["a.xml", "unknown format"]),
    ("other JSON", lambda t: {"annotations": text(t / "a.json", '{"forms": []}')}, ["a.json", "expected", "forms"]),
    ("invalid JSON", lambda t: {"annotations": text(t / "a.json", '{"images": [,')}, ["a.json", "line 1, column 13"]),
    ("empty file", lambda t: {"annotations": text(t / "a.json", "")}, ["a.json", "empty"]),
    ("zero prompts", lambda t: {"annotations": text(t / "a.json", coco())}, ["a.json", "at least one", "got none"]),
    ("zero detections", lambda t: {"annotations": text(t / "a.json", "[]")}, ["a.json", "at least one", "got none"]),
    ("wrong index", lambda t: {"image-index": text(t / "i.json", "[]")}, ["i.json"]),
    ("no image folder", lambda t: {"images": str(t / "nowhere")}, ["nowhere", "expected a folder of images"]),
    ("missing config", lambda t: {"config": "no.yaml"}, ["no.yaml", "cannot read"]),
    ("invalid YAML", lambda t: {"config": text(t / "c.yaml", "a: [")}, ["c.yaml", "not valid YAML"]),
    ("unknown key", lambda t: {"config": text(t / "c.yaml", "refiner: {modle: tiny}")}, ["c.yaml", "refiner.modle"]),
    ("bad value", lambda t: {"config": text(t / "c.yaml", "shard_images: 0")}, ["c.yaml", "shard_images", "got 0"]),
    ("unknown model", lambda t: {"model": "sam3"}, ["--model", "sam3", "vit_b"]),
    ("no checkpoint", lambda t: {"model": "vit_b"}, ["run: stable-sam models get vit_b", "checkpoint_uri"]),
    ("bad date", lambda t: {"logical-date": "today"}, ["YYYY-MM-DD", "'today'"]),
    (
        "unwritable",
        lambda t: {"output": text(t / "file", "") + "/table"},
        ["file/table", "Not a directory"],
    ),
    (
        "missing checkpoint",
        lambda t: {"model": "vit_b", "config": text(t / "c.yaml", "refiner: {model: vit_b, checkpoint_uri: no.pth}")},
        ["no.pth", "no such weights file"],
    ),
]


@pytest.mark.parametrize(("options", "expected"), [case[1:] for case in BEFORE_WORK], ids=[c[0] for c in BEFORE_WORK])
def test_refused_before_any_work(
    options: Callable[[Folder], Options],
    expected: list[str],
    annotations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = {
        "annotations": str(annotations),
        "images": str(tmp_path / "images"),
        "output": str(tmp_path / "table"),
        "model": "tiny",
    }
    line = refused(good | options(tmp_path), monkeypatch, capsys)
    for words in expected:
        assert words in line
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize("option", ["annotations", "images", "output"])
def test_missing_s3_credentials_are_refused(
    option: str,
    s3: str,
    annotations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    good = {
        "annotations": str(annotations),
        "images": str(tmp_path / "images"),
        "output": str(tmp_path / "table"),
        "model": "tiny",
    }
    line = refused(good | {option: f"{s3}/somewhere"}, monkeypatch, capsys)
    assert f"{s3}/somewhere" in line
    assert "AWS_ACCESS_KEY_ID" in line


# What is wrong with an annotation on a good image of 80 x 60 pixels: its fields, and a part of the row's error.
BAD_ANNOTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no image entry": ({"image_id": 99, "bbox": [1, 1, 20, 20]}, "99"),
    "empty box": ({"bbox": [10, 10, 0, 20]}, "empty"),
    "inverted box": ({"bbox": [30, 30, -20, -20]}, "inverted"),
    "box outside": ({"bbox": [200, 200, 20, 20]}, "outside the image"),
    "NaN": ({"bbox": [float("nan"), 1, 20, 20]}, "finite"),
    "infinity": ({"bbox": [1, 1, float("inf"), 20]}, "finite"),
    "normalised": ({"bbox": [0.1, 0.2, 0.5, 0.4]}, "normalised"),
    "three numbers": ({"bbox": [1, 2, 3]}, "expected"),
    "nothing": ({}, "expected"),
    "wrong label": ({"points": [[10, 10, 7]]}, "label"),
    "point outside": ({"points": [[500, 10, 1]]}, "outside the image"),
}
# What is wrong with an image, by its file name, and a part of the row's error.
BAD_IMAGES = {
    "missing.jpg": "missing.jpg",
    "../secret.jpg": "leads out of it",
    "truncated.jpg": "truncated.jpg",
    "text.jpg": "text.jpg",
    "empty.jpg": "empty",
    "bomb.png": "too large",
}


@pytest.mark.usefixtures("prefect_server", "ray_local")
def test_everything_bad_in_one_night_is_a_row_with_its_reason(photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (tmp_path / "secret.jpg").write_bytes(photos[0].read_bytes())
    (folder / "truncated.jpg").write_bytes(photos[0].read_bytes()[:600])
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.jpg").touch()
    Image.new("1", (2000, 2000)).save(folder / "bomb.png")
    images = [{"id": 1, "file_name": photos[0].name, "width": 80, "height": 60}]
    images += [{"id": 100 + n, "file_name": name} for n, name in enumerate(BAD_IMAGES)]
    annotations = [{"id": "good", "image_id": 1, "bbox": [5, 5, 40, 30]}]
    annotations += [{"id": name, "image_id": 1} | fields for name, (fields, _) in BAD_ANNOTATIONS.items()]
    annotations += [{"id": name, "image_id": 100 + n, "bbox": [5, 5, 40, 30]} for n, name in enumerate(BAD_IMAGES)]
    source = text(tmp_path / "annotations.json", coco(images=images, annotations=annotations))

    from flows.refine import refine_dataset

    summary = refine_dataset(
        source,
        str(folder),
        str(tmp_path / "table"),
        {
            "refiner": {"model": "tiny", "jitter_count": 2, "max_image_pixels": 1_000_000},
            "ray": {"actors": 1, "max_retries": 0},
        },
    )

    rows = {row["annotation_id"]: row for row in query(str(tmp_path / "table"), "SELECT * FROM masks").to_pylist()}
    reasons = {name: reason for name, (_, reason) in BAD_ANNOTATIONS.items()} | BAD_IMAGES
    assert rows.keys() == {"good", *reasons}
    assert (rows["good"]["status"], rows["good"]["error"]) == ("ok", None)
    assert (summary.prompts, summary.failed) == (len(annotations), len(reasons))
    for name, reason in reasons.items():
        assert rows[name]["status"] == "failed", name
        assert reason in rows[name]["error"], name
        assert "\n" not in rows[name]["error"], name
        assert rows[name]["mask_counts"] is None, name
