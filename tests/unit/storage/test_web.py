"""Files of a web server are read as others are, through the proxy of the environment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stable_sam.errors import NotFoundError, StorageError
from stable_sam.storage.files import exists, read_bytes
from tests.unit.file_server import FileServer, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(b"weights") as running:
        yield running


def test_a_file_is_read(server: FileServer) -> None:
    assert exists(server.url)
    assert read_bytes(server.url) == b"weights"


def test_a_missing_file_and_a_refused_one_are_named(server: FileServer) -> None:
    server.status = 404
    assert not exists(server.url)
    with pytest.raises(NotFoundError, match=f"^{server.url}: cannot read: not found$"):
        read_bytes(server.url)
    server.status = 403
    with pytest.raises(StorageError, match=f"^{server.url}: cannot read: 403, message='Forbidden'"):
        read_bytes(server.url)


def test_the_proxy_of_the_environment_is_used(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    assert read_bytes("http://models.invalid/base.pth") == b"weights"


def test_a_server_that_does_not_answer_is_not_a_missing_file(server: FileServer) -> None:
    server.status = 403
    with pytest.raises(StorageError, match=f"^{server.url}: cannot look up: 403, message='Forbidden'"):
        exists(server.url)
    with pytest.raises(StorageError, match="^http://127.0.0.1:9/a.json: cannot look up: Cannot connect to host"):
        exists("http://127.0.0.1:9/a.json")
