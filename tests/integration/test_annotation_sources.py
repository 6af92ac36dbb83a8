"""Folders of annotation files, night after night: several detectors in one table, what counts as a change, on S3."""

from __future__ import annotations

import re
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from stable_sam.config import SourceConfig
from stable_sam.formats.read import read_prompts
from stable_sam.formats.sources import annotations_modified_since, annotations_version
from stable_sam.records import Changes
from stable_sam.storage import files as storage
from stable_sam.storage import parallel, uris
from stable_sam.table.query import query
from tests.integration.test_nights import CONFIG, done, night

VOC = "<annotation><filename>{}.jpg</filename><object><name>cat</name>{}</object></annotation>"
BOX = "<bndbox><xmin>6</xmin><ymin>6</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"


@pytest.fixture
def job(photos: list[Path], tmp_path: Path) -> dict[str, Any]:
    for folder in ("yolo/labels", "voc"):
        (tmp_path / folder).mkdir(parents=True)
    for photo in photos:
        (tmp_path / "yolo" / "labels" / f"{photo.stem}.txt").write_text("0 0.5 0.5 0.4 0.4\n1 0.4 0.4 0.3 0.3\n")
        (tmp_path / "voc" / f"{photo.stem}.xml").write_text(VOC.format(photo.stem, BOX))
    (tmp_path / "yolo" / "classes.txt").write_text("cat\ndog\n")
    return {
        "annotations_uri": f"yolo={tmp_path}/yolo/labels,voc={tmp_path}/voc",
        "images_uri": str(tmp_path / "images"),
        "output_uri": str(tmp_path / "table"),
        "config": CONFIG,
    }


def test_nights_of_two_detectors(job: dict[str, Any], tmp_path: Path) -> None:
    assert done(night(job)) == Changes(new=9)
    by_source = "SELECT attributes->>'annotation_source' AS source, count(*) AS n FROM masks GROUP BY 1 ORDER BY 1"
    assert query(job["output_uri"], by_source).to_pylist() == [{"source": "voc", "n": 3}, {"source": "yolo", "n": 6}]
    assert night(job) is None
    # Another name of a class, a file more, one less: each is found, and nothing else is done.
    (tmp_path / "yolo" / "classes.txt").write_text("cat\nhorse\n")
    assert done(night(job)) == Changes(prompt_changed=3, unchanged=6)
    (tmp_path / "voc" / "photo0.xml").unlink()
    (tmp_path / "voc" / "more.xml").write_text(VOC.format("photo0", BOX))
    assert done(night(job)) == Changes(new=1, withdrawn=1, unchanged=8)
    (tmp_path / "voc" / "more.xml").write_text("<annotation><obj")
    assert done(night(job)) == Changes(new=1, withdrawn=1, unchanged=8)
    failed = "SELECT prompt_id, error FROM masks WHERE status = 'failed'"
    [row] = query(job["output_uri"], failed).to_pylist()
    assert row["prompt_id"] == "voc/more"
    assert "more.xml: not valid XML" in row["error"]
    assert night(job) is None


def test_another_reading_is_another_source(photos: list[Path], tmp_path: Path) -> None:
    images = ", ".join(f'{{"id": {n}, "file_name": "{photo.name}"}}' for n, photo in enumerate(photos))
    record = '{"id": 1, "image_id": 0, "bbox": [5, 5, 40, 30], "keypoints": [10, 10, 2]}'
    (tmp_path / "coco.json").write_text(f'{{"images": [{images}], "annotations": [{record}]}}')
    job = {
        "annotations_uri": str(tmp_path / "coco.json"),
        "images_uri": str(tmp_path / "images"),
        "output_uri": str(tmp_path / "table"),
        "config": CONFIG,
    }
    assert done(night(job)) == Changes(new=1)
    assert done(night(job | {"config": CONFIG | {"source": {"keypoints": True}}})) == Changes(prompt_changed=1)


def test_a_dry_run_of_a_given_format(
    job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dry_run(*options: str) -> tuple[str, str]:
        arguments = ["refine", "--images", "images", "--output", "table", "--model", "tiny", "--dry-run"]
        monkeypatch.setattr(sys, "argv", ["stable-sam", *arguments, *options])
        with pytest.raises(SystemExit):
            cli.main()
        captured = capsys.readouterr()
        return captured.out, captured.err

    monkeypatch.chdir(tmp_path)
    printed, _ = dry_run("--annotations", "voc", "--format", "voc")
    assert "To refine: 3 prompts on 3 images" in printed
    printed, _ = dry_run("--annotations", "yolo=yolo/labels,voc=v*/*.xml", "--format", "auto")
    assert "To refine: 9 prompts on 3 images" in printed
    _, told = dry_run("--annotations", "voc", "--format", "cvat")
    assert re.search(r"photo0\.xml: expected format cvat, got voc$", told.strip())
    assert "\n" not in told.strip()


def test_folders_on_s3_are_those_of_local_folders(s3: str, job: dict[str, Any], tmp_path: Path) -> None:
    base = uris.join(s3, uuid.uuid4().hex)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            storage.write_bytes(uris.join(base, path.relative_to(tmp_path).as_posix()), path.read_bytes())
    found = []
    for root in (str(tmp_path), base):
        annotations = f"yolo={root}/yolo/labels,voc={root}/v*/photo?.xml"
        prompts = list(read_prompts(annotations, images_uri=f"{root}/images"))
        assert [prompt.error for prompt in prompts] == [None] * 9
        found.append(repr(prompts).replace(root, ""))
        version = annotations_version(annotations)
        assert version == annotations_version(annotations)
        storage.write_bytes(f"{root}/voc/photo9.xml", b"x")
        assert annotations_version(annotations) not in (version, None)
        assert annotations_modified_since(annotations, datetime(2020, 1, 1, tzinfo=UTC))
        assert not annotations_modified_since(annotations, datetime(2120, 1, 1, tzinfo=UTC))
        assert annotations_version(f"{annotations},{root}/nothing.json") is None
    assert found[0] == found[1]


def test_small_files_cost_a_request_each(s3: str, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base = uris.join(s3, uuid.uuid4().hex)
    count = 2 * parallel.AHEAD
    for number in range(count):
        storage.write_bytes(f"{base}/labels/{number:04}.txt", b"0 0.5 0.5 0.4 0.4\n")
        storage.write_bytes(f"{base}/images/{number:04}.jpg", photos[0].read_bytes())
    asked: list[str] = []
    read_head = storage.read_head

    def counted(uri: str, length: int) -> bytes:
        asked.append(uri)
        return read_head(uri, length)

    monkeypatch.setattr(storage, "read_head", counted)
    source = SourceConfig(format="yolo")
    prompts = read_prompts(f"{base}/labels", images_uri=f"{base}/images", source=source)
    assert [prompt.prompt_id for prompt in prompts] == [f"{number:04}:0" for number in range(count)]
    assert sorted(asked) == sorted([*storage.list_files(f"{base}/labels"), *storage.list_files(f"{base}/images")])
