"""The real command on data sets as other tools lay them out: splits with their images beside them, stores of links."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import cli
from stable_sam.table.query import query
from tests.integration.test_nights import CONFIG

pytestmark = [pytest.mark.usefixtures("prefect_server", "ray_local")]


def refine(*options: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The rows after `stable-sam refine`, in the order of their prompts."""
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    command = ["stable-sam", "refine", "--output=table", "--config=config.yaml", *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    rows: list[dict[str, Any]] = query("table", "SELECT * FROM masks ORDER BY prompt_id").to_pylist()
    assert end.value.code == (2 if all(row["status"] == "failed" for row in rows) else 0)
    return rows


def test_splits_and_links(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = {"id": 1, "image_id": 0, "bbox": [5, 5, 40, 30]}
    for split, photo in zip(("train", "valid"), photos, strict=False):
        folder = tmp_path / "ds" / split
        folder.mkdir(parents=True)
        document = {"images": [{"id": 0, "file_name": "shot.jpg"}], "annotations": [record]}
        (folder / "_annotations.coco.json").write_text(json.dumps(document))
        (folder / "shot.jpg").write_bytes(photo.read_bytes())
        (tmp_path / "ds" / "README.dataset.txt").write_text("made for this test")
    rows = refine("--annotations=ds", "--images=ds", monkeypatch=monkeypatch)
    uris = [f"{tmp_path}/ds/{split}/shot.jpg" for split in ("train", "valid")]
    assert [(row["image_uri"], row["status"]) for row in rows] == [(uri, "ok") for uri in uris]
    # One of the images moves into a store.
    Path(uris[1]).rename(tmp_path / "ab12")
    Path(uris[1]).symlink_to("../../ab12")
    _, linked = refine("--annotations=ds", "--images=ds", monkeypatch=monkeypatch)
    assert linked["status"] == "failed"
    assert "valid/shot.jpg is a link, and links that lead out of it are not followed: --follow-links" in linked["error"]
    _, linked = refine("--annotations=ds", "--images=ds", "--follow-links", monkeypatch=monkeypatch)
    assert (linked["image_uri"], linked["status"]) == (uris[1], "ok")
