"""A COCO export in datumaro's layout is loaded by datumaro itself, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from stable_sam.review.export import export
from stable_sam.storage.uris import join
from tests.integration.other_tools import python_with
from tests.integration.review_job import new_job, painted

LOAD = """
import json, sys
from datumaro.components.dataset import Dataset

print(json.dumps(sorted(
    [item.id, item.media.data.shape, [one.image.tolist() for one in item.annotations if one.type.name == "mask"]]
    for item in Dataset.import_from(sys.argv[1], "coco")
)))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed = ("imagesize", "json-stream", "json-stream-rs-tokenizer", "lxml", "pandas", "shapely", "tqdm")
    return python_with(tmp_path_factory.mktemp("datumaro"), "datumaro", *needed)


def test_datumaro_finds_the_files_and_reads_every_mask(python: Path, tmp_path: Path) -> None:
    job = new_job(str(tmp_path / "images"))
    out = join(job.root, "coco")
    export(job.table, "coco", out, layout="datumaro")
    loaded = subprocess.run([python, "-c", LOAD, out], check=True, capture_output=True, cwd=tmp_path, text=True)
    items = json.loads(loaded.stdout.splitlines()[-1])
    assert [(name, len(masks)) for name, _, masks in items] == [(f"sub/{n}", 3) for n in range(3)]
    assert all(shape == [40, 60, 3] for _, shape, _ in items)
    theirs = [np.array(mask, np.bool_) for _, _, masks in items for mask in masks]
    assert all(any(np.array_equal(painted(f"p{k}"), mask) for mask in theirs) for k in range(9))
