"""Downloads a published file to the cache folder. A download that was cut off continues where it stopped."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import httpx

from stable_sam.bases.base import PublishedFile
from stable_sam.bases.cache import FOLDER_VARIABLE, cached_file, cached_path
from stable_sam.errors import StorageError, one_line
from stable_sam.wording import file_size

PARTIAL_SUFFIX = ".partial"
CHUNK_BYTES = 2**20
TIMEOUT_S = 30
"""Seconds without any answer after which a server counts as gone."""

Progress = Callable[[int, int], None]
"""Is told how many bytes are there, and of how many."""


def download(published: PublishedFile, on_progress: Progress = lambda done, total: None) -> Path:
    """Return the path of a published file in the cache folder, and download it first unless it is there whole.

    The SHA-256 is checked in both cases. A download gets the name of the file when its content has been checked; until
    then it ends in `.partial`. The proxies of the environment (`https_proxy` and the like) are used.
    Raises `StorageError`: no room, the folder cannot be read or written, no or another answer, another size or hash, or
    another process downloads the same file.
    """
    path = cached_path(published)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with _explained(published.url, path.parent):
        if cached_file(published) is not None:
            _check_content(published, path)
            on_progress(published.size, published.size)
            return path
        with _opened_alone(partial) as file:
            there = file.tell()
            if there > published.size:
                there = file.seek(file.truncate(0))
            _check_room(path.parent, published.size - there)
            if there < published.size:
                _fetch(published, file, there, on_progress)
            _check_content(published, partial)
            partial.replace(path)
    return path


def _fetch(published: PublishedFile, file: BinaryIO, there: int, on_progress: Progress) -> None:
    """Append what follows the `there` bytes of `file`, or write all anew where the server sends no parts of files."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
    with httpx.stream("GET", published.url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code not in (200, 206):
            raise StorageError(
                f"{published.url}: cannot download: the server answered {answer.status_code} {answer.reason_phrase}"
            )
        if answer.status_code == 200:
            there = 0
        length = answer.headers.get("Content-Length")
        if length is not None and there + int(length) != published.size:
            raise StorageError(
                f"{published.url}: expected {published.size} bytes, the server has {there + int(length)}; is this the "
                "answer of a proxy, or has the published file changed?"
            )
        if there == 0:
            file.seek(file.truncate(0))
        on_progress(there, published.size)
        for chunk in answer.iter_bytes(CHUNK_BYTES):
            file.write(chunk)
            there += len(chunk)
            on_progress(there, published.size)
            if there > published.size:  # a server that states no length need not end
                break
    file.flush()


def _check_content(published: PublishedFile, path: Path) -> None:
    """Raise `StorageError`, and remove the file when its bytes are not those of the published one."""
    size = path.stat().st_size
    if size < published.size:
        raise StorageError(
            f"{published.url}: the download ended after {size} of {published.size} bytes; run the command again to "
            "continue"
        )
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != published.sha256:
        path.unlink()
        raise StorageError(
            f"{path}: expected the SHA-256 {published.sha256} for {published.url}, got {found}; the file was removed; "
            "run the command again, and if this stays, the published file has changed"
        )


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise StorageError(
            f"{folder}: expected {file_size(size)} of free space, got {file_size(free)}; free some, or set "
            f"{FOLDER_VARIABLE} to a folder that has room"
        )


@contextmanager
def _opened_alone(partial: Path) -> Iterator[BinaryIO]:
    """Open a file for appending that no other process has opened so; a missing folder is created."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{partial}: another process downloads this file; wait until it is done") from None
        # Between opening and locking, the other process may have ended, and removed or renamed the file.
        if not partial.exists() or not os.path.samestat(os.fstat(file.fileno()), partial.stat()):
            raise StorageError(f"{partial}: another process has just downloaded this file; run the command again")
        try:
            yield file
        finally:
            if partial.exists() and partial.stat().st_size == 0:
                partial.unlink()


@contextmanager
def _explained(url: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise StorageError(
            f"{url}: cannot download: {one_line(error)}; check the connection and run the command again, which "
            "continues where it stopped"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot read or write: {error.strerror or error}; set {FOLDER_VARIABLE} to a folder that can be "
            "written and has room"
        ) from error
