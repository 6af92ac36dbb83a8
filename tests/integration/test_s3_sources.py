"""Annotation files and image folders on S3: read in blocks, listed in pages, and no secret is left anywhere."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.backends import get_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.errors import StorageError
from stable_sam.formats.image_folder import ImageFolder
from stable_sam.formats.read import read_prompt_batches, read_prompts
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.shard_job import refine_shard
from stable_sam.runs.plan import plan_run
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.storage import files as storage
from stable_sam.storage.uris import join
from stable_sam.table.query import query
from stable_sam.table.schema import prompt_from_row

pytestmark = pytest.mark.usefixtures("s3")

BOX = [1.0, 2.0, 30.0, 40.0]
ROWS = [{"image": name, "box_xyxy": BOX, "prompt_id": f"{name}-{n}"} for name in ("a.jpg", "b c#.jpg") for n in (1, 2)]
KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


def coco() -> bytes:
    images = [{"id": n, "file_name": name, "width": 90, "height": 80} for n, name in enumerate(("a.jpg", "b c#.jpg"))]
    annotations = [{"id": n, "image_id": n % 2, "bbox": [1, 2, 30, 40], "category_id": 1} for n in range(5)]
    # Categories come last: the file is read twice.
    return json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "c"}]}).encode()


@pytest.mark.parametrize(
    "content", [coco(), parquet(), "\n".join(map(json.dumps, ROWS)).encode()], ids=["coco", "parquet", "json-lines"]
)
def test_annotations_on_s3_are_those_of_the_local_file(s3: str, tmp_path: Path, content: bytes) -> None:
    found = []
    for base in (str(tmp_path), join(s3, uuid.uuid4().hex)):
        for name in ("images/a.jpg", "images/b c#.jpg"):
            storage.write_bytes(join(base, name), b"")
        storage.write_bytes(join(base, "annotations"), content)
        uris = {"annotations_uri": join(base, "annotations"), "images_uri": join(base, "images")}
        prompts = list(read_prompts(**uris))
        rows = [row for batch in read_prompt_batches(**uris) for row in batch.to_pylist()]
        assert [prompt_from_row(row) for row in rows] == prompts
        found.append(repr(prompts).replace(base, ""))
    assert found[0] == found[1]
    assert "error=None" in found[0]


class Counted:
    """An S3 server in this process that counts what it is asked."""

    bucket = "s3://counted"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._app = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], reply: Callable[..., Any]) -> Iterable[bytes]:
        self.asked.append(f"{environ['REQUEST_METHOD']} {environ.get('HTTP_RANGE', '')}".strip())
        answer: Iterable[bytes] = self._app(environ, reply)
        return answer

    def fill(self, names: Iterable[str]) -> None:
        """Empty objects, put into the server's memory: a request for each would take long."""
        backend = get_backend("s3")["123456789012"]["aws"]
        for name in names:
            backend.put_object("counted", name, b"")

    def requests(self, act: Callable[[], object]) -> list[str]:
        self.asked.clear()
        act()
        return list(self.asked)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    app = Counted()
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="counted")
    yield app
    server.shutdown()
    server.server_close()


def test_listing_costs_a_request_for_each_page_and_not_for_each_object(counted: Counted) -> None:
    counted.fill([f"images/{number:05}.jpg" for number in range(1200)] + ["images-too/x.jpg"])
    images, hour = join(counted.bucket, "images"), timedelta(hours=1)
    past, future = datetime.now(UTC) - hour, datetime.now(UTC) + hour
    found: list[int] = []
    assert counted.requests(lambda: found.append(len(ImageFolder(images)))) == ["GET"] * 2
    assert counted.requests(lambda: next(iter(storage.iter_versions(images)))) == ["GET"], "passed on as it comes"
    asked = counted.requests(lambda: found.append(len(storage.modified_since(images, past))))
    assert asked == ["HEAD"] + ["GET"] * 3, "first whether it is a file"
    assert found == [1200, 1200]
    one = join(images, "00007.jpg")
    assert storage.modified_since(one, past) == {one}
    assert storage.modified_since(one, future) == storage.modified_since(images + "-gone", past) == set()


def test_a_stream_asks_for_blocks_and_only_for_those_it_needs(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1000)
    uri = join(counted.bucket, "x")
    content = os.urandom(10_500)
    storage.write_bytes(uri, content)

    def read_some() -> None:
        with storage.open_stream(uri) as stream:
            assert stream.read(1500) == content[:1500]
            stream.seek(-300, io.SEEK_END)
            assert stream.read() == content[-300:]

    ranges = [request for request in counted.requests(read_some) if "bytes=" in request]
    assert ranges[0] == "GET bytes=0-999"
    assert len(ranges) <= 4
    with storage.open_stream(uri) as stream:
        assert stream.read() == content


def test_a_file_replaced_while_it_is_read_is_an_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1000)
    uri = join(s3, uuid.uuid4().hex)
    storage.write_bytes(uri, b"a" * 5000)
    with storage.open_stream(uri) as stream:
        assert stream.read(1000) == b"a" * 1000
        storage.write_bytes(uri, b"b" * 5000)
        with pytest.raises(StorageError, match=f"^{uri}: cannot read: "):
            stream.read()


def test_no_secret_is_in_what_a_run_says_and_leaves(
    s3: str,
    annotations: Path,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    secrets = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": f"session{SECRET}"}
    for variable, value in secrets.items():
        monkeypatch.setenv(variable, value)
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "stable_sam")
    base = join(s3, uuid.uuid4().hex)
    for path in photos:
        storage.write_bytes(join(base, "images", path.name), path.read_bytes())
    document = json.loads(annotations.read_text())
    document["images"][0]["file_name"] = f"https://example.invalid/a.jpg?X-Amz-Signature={SECRET}"
    uris = {"annotations_uri": join(base, "annotations.json"), "images_uri": join(base, "images")}
    storage.write_bytes(uris["annotations_uri"], json.dumps(document).encode())
    refiner, output = Refiner(RefinerConfig(model="tiny", jitter_count=0)), join(base, "table")
    request = RunRequest(output_uri=output, config=RunConfig(), **uris)
    manifest = plan_run(read_prompts(**uris), request, refiner.identity)
    assert manifest is not None
    storage.remove_files(uris["images_uri"], [photos[1].name])  # what the store answers then stands in the rows
    for shard in manifest.shards:
        refine_shard(refiner, manifest, shard)
    publish(manifest)
    rows = query(output, "SELECT * FROM history").to_pylist()
    assert "X-Amz-Signature=***" in repr(rows)
    assert sorted(row["status"] for row in rows) == ["failed"] * 6 + ["ok"] * 3
    left = {uri: storage.read_bytes(uri).decode(errors="replace") for uri in storage.list_files(output)}
    assert any("/_runs/" in uri for uri in left)
    # Parquet is compressed, so the rows count besides the bytes.
    for said in (caplog.text, *capfd.readouterr(), repr(rows), repr(manifest), *left, *left.values()):
        assert SECRET not in said
        assert KEY_ID not in said
