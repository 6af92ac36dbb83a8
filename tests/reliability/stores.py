"""The stores under test: a folder, an S3 server that is started for it, and one that is given; the last two through a
proxy that can fail."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from stable_sam.storage.files import list_files, read_bytes, write_bytes
from stable_sam.storage.uris import join
from tests.reliability.proxy import FaultyProxy

_ENDPOINT = "AWS_ENDPOINT_URL_S3"
_KEYS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "us-east-1"}


@dataclass(frozen=True, slots=True)
class Store:
    """A folder on some store, which this process reaches directly."""

    kind: str
    """local, emulator or s3."""
    name: str
    uri: str
    proxy: FaultyProxy | None

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to meet the faults."""
        return {} if self.proxy is None else {_ENDPOINT: f"http://127.0.0.1:{self.proxy.port}"}

    def copy(self, source: str, target: str) -> None:
        """A folder of the store to another place in it, as it is."""
        if self.proxy is None:
            if Path(source).exists():
                shutil.copytree(source, target, dirs_exist_ok=True)
            return
        for uri in list_files(source):
            write_bytes(join(target, uri.removeprefix(source)), read_bytes(uri))


@contextmanager
def local(folder: Path) -> Iterator[Store]:
    """Files below `folder`."""
    yield Store("local", "local files", str(folder), None)


@contextmanager
def emulator(name: str) -> Iterator[Store]:
    """An S3 server on loopback, in memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                break
            time.sleep(0.1)
        with pytest.MonkeyPatch.context() as environment:
            for variable, value in _KEYS.items():
                environment.setenv(variable, value)
            with s3(f"http://127.0.0.1:{port}", name, kind="emulator", title="S3 emulator") as store:
                yield store
    finally:
        server.kill()
        server.wait()


@contextmanager
def s3(endpoint: str, name: str, *, kind: str = "s3", title: str = "S3 store") -> Iterator[Store]:
    """A bucket of its own, `name`, on the S3 store at `endpoint` (http); credentials by the usual variables."""
    import boto3

    address = urlsplit(endpoint)
    if address.scheme != "http" or address.hostname is None:
        raise SystemExit(f"{endpoint}: expected http://HOST:PORT: the proxy cannot look into an encrypted connection")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(_ENDPOINT, endpoint)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        if "AWS_REGION" not in os.environ:
            environment.setenv("AWS_REGION", "us-east-1")
        session = boto3.Session()  # the default one keeps the credentials of the store before
        bucket = session.resource("s3", endpoint_url=endpoint, region_name=os.environ["AWS_REGION"]).Bucket(name)
        bucket.create()
        proxy = FaultyProxy((address.hostname, address.port or 80))
        proxy.start()
        try:
            yield Store(kind, title, f"s3://{name}", proxy)
        finally:
            bucket.objects.all().delete()
            bucket.delete()
