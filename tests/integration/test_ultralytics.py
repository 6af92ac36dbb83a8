"""A YOLO export is loaded by Ultralytics itself, in an environment of its own and from another folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from stable_sam.review.export import export
from stable_sam.storage.uris import join
from tests.integration.other_tools import python_with
from tests.integration.review_job import new_job

LOAD = """
import json, sys
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

data = check_det_dataset(sys.argv[1])
parts = {
    part: YOLODataset(img_path=data[part], data=data, task="segment", augment=False, imgsz=64).labels
    for part in ("train", "val")
}
print(json.dumps({part: [len(label["segments"]) for label in labels] for part, labels in parts.items()}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed = ("ultralytics-thop", "psutil", "polars", "polars-runtime-32")
    return python_with(tmp_path_factory.mktemp("ultralytics"), "ultralytics", *needed)


@pytest.mark.parametrize("split", [None, "0.5/0.5"])
def test_ultralytics_sees_every_mask(python: Path, split: str | None, tmp_path: Path) -> None:
    job = new_job(str(tmp_path / "images"))
    out = join(job.root, "yolo")
    export(job.table, "yolo", out, split=split)
    settings = {"YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "true", "PATH": ""}
    loaded = subprocess.run(
        [python, "-c", LOAD, join(out, "data.yaml")],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        env=settings,
        text=True,
    )
    seen = json.loads(loaded.stdout.splitlines()[-1])
    images = [count for part in (seen if split else ["train"]) for count in seen[part]]
    assert images == [3, 3, 3]
