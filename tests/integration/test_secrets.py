"""What others write down of a run, Prefect in its database and Ray in its logs, holds no secret either."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from stable_sam.storage.files import write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.query import query

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAMADEUPMADEUP0001",
    "AWS_SECRET_ACCESS_KEY": "madeUpSecretKeyThatNobodyMayFind00000001",
    "AWS_SESSION_TOKEN": "madeUpSessionTokenThatNobodyMayFind00002",
}
SIGNATURE = "madeUpSignatureThatNobodyMayFind00000003"
DEBUG = {
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_SERVER_LEVEL": "DEBUG",
    "RAY_BACKEND_LOG_LEVEL": "debug",
}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """For Ray's session: the paths of its sockets must be short."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


def write_job(base: str, annotations: Path, photos: list[Path]) -> None:
    """The three pictures on S3; the annotations call the first one by a signed URL, and the second is no picture."""
    for path in photos:
        write_bytes(join(base, "images", path.name), path.read_bytes())
    write_bytes(join(base, "images", photos[1].name), b"no picture")
    document = json.loads(annotations.read_text())
    document["images"][0]["file_name"] = f"https://example.invalid/a.jpg?X-Amz-Signature={SIGNATURE}"
    write_bytes(join(base, "annotations.json"), json.dumps(document).encode())


def database(folder: Path) -> str:
    """Everything in Prefect's database as SQL: in the file itself long values lie in pieces."""
    with sqlite3.connect(f"file:{folder / 'prefect.db'}?mode=ro", uri=True) as connection:
        return "\n".join(connection.iterdump())


def test_no_secret_is_in_what_prefect_and_ray_write_down(
    s3: str, prefect_server: str, ray_folder: Path, annotations: Path, photos: list[Path], tmp_path: Path
) -> None:
    base = join(s3, uuid.uuid4().hex)
    write_job(base, annotations, photos)
    config = tmp_path / "config.yaml"
    config.write_text("refiner: {model: tiny, jitter_count: 0}\nray: {actors: 1}\nmax_failed_fraction: 0.0\n")
    uris = (f"--annotations={base}/annotations.json", f"--images={base}/images", f"--output={base}/table")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", "refine", *uris, f"--config={config}"],
        env=environment | SECRETS | DEBUG | {"RAY_TMPDIR": str(ray_folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert "6 of 9 prompts failed" in done.stderr

    rows = query(join(base, "table"), "SELECT * FROM history").to_pylist()
    assert "X-Amz-Signature=***" in repr(rows)
    folders = {"Prefect": Path(os.environ["PREFECT_HOME"]), "Ray": ray_folder}
    said = {f"{whose}: {path}": path.read_bytes().decode(errors="replace")
            for whose, folder in folders.items() for path in folder.rglob("*") if path.is_file()}  # fmt: skip
    said |= {"database": database(folders["Prefect"]), "output": done.stdout + done.stderr, "rows": repr(rows)}
    # This is where it would be found.
    assert f"{base}/annotations.json" in said["database"]
    assert "prompts failed" in said["database"]
    assert any(" D " in text for name, text in said.items() if name.startswith("Ray: ") and "raylet" in name)
    for secret in (*SECRETS.values(), SIGNATURE):
        assert [name for name, text in said.items() if secret in text] == []
