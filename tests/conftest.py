"""Fixtures that several areas share. Real parts only: an S3 server on loopback instead of mocks."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported. Two files run at a time: threads that share a core wait for each other by spinning, which
# made tests of the model eight times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a developer has downloaded changes no test.
os.environ["STABLE_SAM_MODELS"] = "/nowhere/models"

# How long an example takes says something of the machine, not of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

BUCKET = "stable-sam-tests"


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URI of an empty bucket on an S3 server on loopback; the usual AWS variables point there for the whole session.

    Tests share the bucket: write below a prefix of your own.
    """
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A process of its own: deltalake keeps Python's lock while it waits for an answer, so a thread could not give one.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
        pytest.MonkeyPatch.context() as environment,
    ):
        _wait_for_server(server, port)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"):
            environment.delenv(name, raising=False)
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test-key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"
        server.terminate()


def _wait_for_server(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert server.poll() is None, "the S3 server ended"
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        assert time.monotonic() < deadline, "the S3 server does not start"
        time.sleep(0.1)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three small JPEG photographs with different content in `tmp_path / "images"`."""
    import numpy as np
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0)
    paths = [folder / f"photo{number}.jpg" for number in range(3)]
    for path in paths:
        coarse = noise.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC).save(path)
    return paths


@pytest.fixture
def annotations(photos: list[Path], tmp_path: Path) -> Path:
    """COCO instances JSON with two weak boxes and one point on each of `photos`."""
    images = [{"id": n, "file_name": path.name, "width": 80, "height": 60} for n, path in enumerate(photos)]
    prompts: list[dict[str, object]] = [{"bbox": [5, 5, 40, 30]}, {"bbox": [30, 20, 45, 38]}, {"points": [[40, 30, 1]]}]
    boxes = [
        {"id": 10 * image["id"] + n, "image_id": image["id"], "category_id": 1, **prompt}
        for image in images
        for n, prompt in enumerate(prompts)
    ]
    path = tmp_path / "annotations.json"
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    path.write_text(json.dumps(document))
    return path
