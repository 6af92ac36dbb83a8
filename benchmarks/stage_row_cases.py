"""The stages of `stages.py` that work on files and tables, each with its input, the usual code and our code."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.stage_cases import SIZES, Case, jpeg
from stable_sam.config import RunConfig
from stable_sam.identity import ModelIdentity
from stable_sam.images.decode import MAX_IMAGE_BYTES
from stable_sam.records import Prompt, Provenance, RefinedMask
from stable_sam.rle import encode_mask
from stable_sam.runs.commits import PARQUET_OPTIONS, CommitRecord, write_part
from stable_sam.runs.plan import plan_run
from stable_sam.runs.request import RunRequest
from stable_sam.scores import FROM_MODEL
from stable_sam.storage.files import read_bytes, write_bytes
from stable_sam.storage.uris import join
from stable_sam.table.schema import MASKS_SCHEMA, mask_table

ROWS = 1000
"""Of a shard."""
PROVENANCE = Provenance(
    run_id="0123456789abcdef", shard_id="0123456789abcdef", revision=1, model_id="nano", weights_sha256="ab" * 32,
    config_hash="ab" * 32, code_version="0.1.0", dtype="float32",
)  # fmt: skip
BUCKET = "stages"


def fetch_cases(folder: Path, bucket_uri: str | None) -> Iterator[Case]:
    """A file from disk, and from S3 when there is a bucket: Python's and boto3's reading against `read_bytes`."""
    for name, hw in SIZES.items():
        data = jpeg(hw)
        path = folder / f"{name}.jpg"
        path.write_bytes(data)
        what = f"{name}, {len(data) / 1e6:.1f} MB"

        def local(path: Path = path) -> bytes:
            return read_bytes(str(path), max_bytes=MAX_IMAGE_BYTES)

        yield Case(stage="fetch", what=f"{what}, local file", usual=path.read_bytes, ours=local, difference="none")
        if bucket_uri is None:
            continue
        import boto3

        uri = join(bucket_uri, path.name)
        write_bytes(uri, data)
        client = boto3.client("s3")

        def usual(client: Any = client, path: Path = path) -> bytes:
            content: bytes = client.get_object(Bucket=BUCKET, Key=path.name)["Body"].read()
            return content

        def remote(uri: str = uri) -> bytes:
            return read_bytes(uri, max_bytes=MAX_IMAGE_BYTES)

        yield Case(stage="fetch", what=f"{what}, S3 emulator", usual=usual, ours=remote, difference="none")


def write_cases() -> Iterator[Case]:
    """Rows to the bytes of a Parquet file: a dict for each row against arrays for the columns."""
    rows = some_rows(ROWS)

    def by_row() -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    **{name: getattr(prompt, name) for name in Prompt.__slots__},
                    **{name: getattr(PROVENANCE, name) for name in Provenance.__slots__},
                    **{name: getattr(mask, name) for name in RefinedMask.__slots__},
                }
                for prompt, mask in rows
            ],
            schema=MASKS_SCHEMA,
        )

    def by_column() -> pa.Table:
        return mask_table(rows, PROVENANCE)

    same = "none" if _parquet(by_row()) == _parquet(by_column()) else "NOT EQUAL"
    yield Case(stage="write", what=f"{ROWS} rows to a table", usual=by_row, ours=by_column, difference=same)
    yield Case(stage="write", what=f"{ROWS} rows to Parquet", usual=lambda: _parquet(by_row()),
               ours=lambda: _parquet(by_column()), difference=same)  # fmt: skip


def commit_cases(folder: Path) -> Iterator[Case]:
    """A shard to its Parquet part and its commit record, on local files, against the same rows to one Parquet file."""
    rows = some_rows(ROWS)
    (folder / "images").mkdir(exist_ok=True)
    manifest = plan_run(
        [prompt for prompt, _ in rows],
        RunRequest(
            annotations_uri="weak.json",
            images_uri=str(folder / "images"),
            output_uri=str(folder / "table"),
            config=RunConfig(shard_images=ROWS),
        ),
        ModelIdentity(model_id="nano", weights_sha256="ab" * 32, dtype="float32"),
    )
    assert manifest is not None
    [shard] = manifest.shards

    def usual() -> None:
        pq.write_table(mask_table(rows, PROVENANCE), folder / f"{uuid.uuid4().hex}.parquet", **PARQUET_OPTIONS)

    def ours() -> CommitRecord:
        record, made = write_part(manifest, replace(shard, shard_id=uuid.uuid4().hex), rows)
        assert made
        return record

    yield Case(stage="commit", what=f"{ROWS} rows, local files", usual=usual, ours=ours)


def some_rows(count: int) -> list[tuple[Prompt, RefinedMask]]:
    """Rows as a night makes them: round masks on pictures of 0.3 megapixels, one in twenty failed."""
    draw = np.random.default_rng(0)
    height, width = SIZES["0.3 MP"]
    y, x = np.mgrid[:height, :width]
    rows = []
    for n in range(count):
        key = f"{n:08d}"
        prompt = Prompt(
            prompt_id=key,
            image_id=f"{n // 8:06d}",
            image_uri=f"s3://lake/images/{n // 8:06d}.jpg",
            image_size=(height, width),
            box_xyxy=tuple(draw.uniform(0, height, 4).tolist()),
            annotation_id=str(n),
            category_id=n % 80,
            category="dog",
            score=float(draw.uniform()),
            fingerprint=f"{n:064x}",
        )
        if n % 20 == 0:
            rows.append((prompt, RefinedMask(prompt_id=key, status="failed", error="the box is empty", route="reject")))
            continue
        disc = np.hypot(y - draw.uniform(0, height), x - draw.uniform(0, width)) < draw.uniform(20, 200)
        mask = encode_mask(disc)
        refined = RefinedMask(
            prompt_id=key,
            status="ok",
            mask_size=mask.size_hw,
            mask_counts=mask.counts,
            bbox_xywh=mask.bbox_xywh,
            area=mask.area,
            route="accept",
            route_reason="quality",
            **dict(zip(FROM_MODEL, draw.uniform(size=len(FROM_MODEL)).tolist(), strict=True)),
        )
        rows.append((prompt, refined))
    return rows


@contextlib.contextmanager
def s3_emulator(folder: Path) -> Iterator[str]:
    """The URI of an empty bucket of a moto server on loopback, to which the AWS variables point."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test-key", "AWS_REGION": "us-east-1",
        "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "moto.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            while server.poll() is None:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
                    break
                time.sleep(0.1)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield f"s3://{BUCKET}"
        finally:
            server.terminate()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **PARQUET_OPTIONS)
    return buffer.getvalue()
