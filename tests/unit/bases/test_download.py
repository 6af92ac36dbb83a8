"""A base is downloaded whole or not at all, and a download that was cut off continues."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from stable_sam.bases.cache import cached_file
from stable_sam.bases.download import CHUNK_BYTES, download
from stable_sam.errors import StorageError
from tests.unit.file_server import FileServer, serving

CONTENT = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("STABLE_SAM_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(CONTENT) as running:
        yield running


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "models").iterdir())


def test_a_file_is_downloaded_once(server: FileServer, tmp_path: Path) -> None:
    published = server.published()
    told: list[tuple[int, int]] = []

    path = download(published, lambda done, total: told.append((done, total)))

    assert path == tmp_path / "models" / "base.pth" == cached_file(published)
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == ["base.pth"]
    assert (told[0], told[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    assert download(published) == path
    assert len(server.starts) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_off_continues_or_starts_again(
    server: FileServer, tmp_path: Path, ranges: bool
) -> None:
    server.cut_after = CHUNK_BYTES
    with pytest.raises(StorageError, match="base.pth: cannot download: .*run the command again, which continues"):
        download(server.published())
    assert cached_file(server.published()) is None
    assert files(tmp_path) == ["base.pth.partial"]

    server.cut_after, server.ranges = None, ranges
    assert download(server.published()).read_bytes() == CONTENT
    assert server.starts == [0, CHUNK_BYTES]


def test_a_download_without_a_stated_length_that_ends_early_continues(server: FileServer) -> None:
    server.states_length, server.cut_after = False, CHUNK_BYTES
    with pytest.raises(StorageError, match=f"ended after {CHUNK_BYTES} of {len(CONTENT)} bytes; run the command again"):
        download(server.published())
    server.cut_after = None
    assert download(server.published()).read_bytes() == CONTENT


@pytest.mark.parametrize("rest", [b"", b"more than the file has"])
def test_a_partial_file_that_is_whole_or_too_long_is_no_obstacle(
    server: FileServer, tmp_path: Path, rest: bytes
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base.pth.partial").write_bytes(CONTENT + rest)
    assert download(server.published()).read_bytes() == CONTENT
    assert server.starts == ([0] if rest else [])


def test_another_hash_removes_the_download(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected the SHA-256 0000 for http.*, got [0-9a-f]{64}; the file was"):
        download(server.published(sha256="0000"))
    assert files(tmp_path) == []


def test_a_file_that_somebody_put_there_is_checked(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base.pth").write_bytes(b"?" * len(CONTENT))
    with pytest.raises(StorageError, match="base.pth: expected the SHA-256 "):
        download(server.published())
    assert files(tmp_path) == []


def test_another_length_is_refused_before_it_is_downloaded_and_keeps_what_is_there(
    server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    partial = tmp_path / "models" / "base.pth.partial"
    partial.write_bytes(CONTENT[:7])
    published = server.published()
    server.content, server.ranges = b"<html>Please log in</html>", False
    with pytest.raises(
        StorageError, match=f"expected {len(CONTENT)} bytes, the server has 26; is this the answer of a"
    ):
        download(published)
    assert partial.read_bytes() == CONTENT[:7]


def test_a_longer_answer_without_a_stated_length_is_not_read_to_its_end(server: FileServer, tmp_path: Path) -> None:
    server.states_length = False
    with pytest.raises(StorageError, match="expected the SHA-256"):
        download(server.published(size=5))
    assert files(tmp_path) == []


@pytest.mark.parametrize(("status", "reason"), [(404, "404 Not Found"), (503, "503 Service Unavailable")])
def test_an_answer_without_the_file_is_named(server: FileServer, tmp_path: Path, status: int, reason: str) -> None:
    server.status = status
    with pytest.raises(StorageError, match=f"^{server.url}: cannot download: the server answered {reason}$"):
        download(server.published())
    assert files(tmp_path) == []


def test_a_server_that_is_not_there_is_named(server: FileServer, tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/base.pth"
    with pytest.raises(StorageError, match=f"^{url}: cannot download: .*refused.*; check the connection"):
        download(server.published(url=url))
    assert files(tmp_path) == []


def test_a_disk_without_room_is_refused_before_anything_is_downloaded(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=2_000_000))
    message = "models: expected 3 MB of free space, got 2 MB; free some, or set STABLE_SAM_MODELS to a folder that has"
    with pytest.raises(StorageError, match=message):
        download(server.published())
    assert server.starts == []


def test_a_folder_that_cannot_be_written_is_named(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("STABLE_SAM_MODELS", str(tmp_path / "file"))
    with pytest.raises(
        StorageError, match=f"^{tmp_path}/file: cannot read or write: .*; set STABLE_SAM_MODELS to a folder"
    ):
        download(server.published())


def test_another_hash_in_a_folder_that_cannot_be_written_is_one_line(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base.pth").write_bytes(b"?" * len(CONTENT))

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageError, match="models: cannot read or write: Permission denied; set STABLE_SAM_MODELS"):
        download(server.published())


def test_two_downloads_of_one_file_do_not_mix(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with open(tmp_path / "models" / "base.pth.partial", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(CONTENT[:5])
        other.flush()
        with pytest.raises(StorageError, match="base.pth.partial: another process downloads this file; wait until"):
            download(server.published())
        other.write(CONTENT[5:9])
    assert download(server.published()).read_bytes() == CONTENT
    assert server.starts == [9]


def test_the_proxy_of_the_environment_is_used(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    published = server.published(url="http://models.invalid/base.pth")
    assert download(published).read_bytes() == CONTENT
