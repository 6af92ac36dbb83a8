"""Files and objects by URI: the only module that writes. Local paths, `s3://`, and whatever else fsspec knows.

S3 takes its settings from the usual variables: AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3), AWS_REGION (or
AWS_DEFAULT_REGION), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, and wherever else
botocore looks. Every function raises `StorageError` or one of its subclasses, in one line that begins with the URI.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from stable_sam.errors import StorageError, without_credentials
from stable_sam.storage import s3
from stable_sam.storage.listing import (
    LeftOutLink,
    Links,
    StoredFile,
    local_file,
    local_files,
    local_links_left_out,
    objects,
    stored_object,
)
from stable_sam.storage.storage_errors import explained, explained_file

PARTIAL_SUFFIX = ".stable-sam-partial"
"""Ending of local files that are still being written; what a killed writer leaves under this name is never listed."""
SINGLE_PUT_BYTES = 5 * 2**30
"""S3's limit for one PUT. s3fs splits far smaller objects, and not every store honours conditions on split uploads."""
BLOCK_BYTES = 4 * 2**20
"""Of a stream: one request of S3, big enough to hide its round trip."""
S3_ROUNDS = 2
"""Rounds of s3fs around botocore's own four attempts: an outage of seconds is ridden out, a dead endpoint told soon."""
CREATE_ATTEMPTS = 5
"""S3 answers 409 when two create-only writes meet; the request then has to be repeated."""
_REMOVERS = 16
"""Files removed at the same time: each costs a round trip."""


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`, with exactly one slash between the parts."""
    base = uri if uri.endswith("://") else uri.rstrip("/") + "/"
    return base + "/".join(part.strip("/") for part in parts)


def absolute_uri(uri: str) -> str:
    """A local path made absolute, `~` included, for those who stand in another folder; a URI as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def read_bytes(uri: str, *, max_bytes: int | None = None) -> bytes:
    """The whole content; `NotFoundError` when there is nothing, `StorageError` when it is longer than `max_bytes`."""
    with explained(uri, "read"):
        filesystem, path = _open(uri)
        if max_bytes is None:
            return bytes(s3.whole(filesystem.cat_file, path))
        content = _head(filesystem, path, max_bytes + 1)
    if len(content) > max_bytes:
        raise StorageError(f"{uri}: cannot read: expected at most {max_bytes} bytes, got a larger file")
    return content


def read_head(uri: str, length: int) -> bytes:
    """The first `length` bytes, fewer of a shorter file, by one request; `NotFoundError` when there is nothing."""
    with explained(uri, "read"):
        return _head(*_open(uri), length)


def open_stream(uri: str) -> BinaryIO:
    """The content as a seekable file that is read in blocks and never held whole; close it at the end.

    Raises `NotFoundError` when there is nothing; reading raises `StorageError`, also when an object is replaced
    meanwhile.
    """
    with explained(uri, "read"):
        filesystem, path = _open(uri)
        file = filesystem.open(path, "rb", block_size=BLOCK_BYTES, cache_type="none")
        if not file.seekable():
            file.close()
            raise StorageError(f"{uri}: cannot read: expected a file, got a pipe or a terminal")
        return io.BufferedReader(explained_file(file, uri), BLOCK_BYTES)


def write_bytes(uri: str, data: bytes) -> None:
    """Write or replace the whole content: readers see the old or the new bytes, never a part (S3: one PUT)."""
    with explained(uri, "write"):
        filesystem, path = _open(uri)
        if isinstance(filesystem, LocalFileSystem):
            with _local_partial(Path(path), data) as partial:
                partial.replace(path)
        else:
            _put(filesystem, path, data)


@contextmanager
def write_stream(uri: str) -> Iterator[BinaryIO]:
    """A file to write, of any length, whose content lies at `uri` when the block ends, and never when it raises.

    Until then it is a local file: beside `uri` when that is local.
    """
    with explained(uri, "write"):
        filesystem, path = _open(uri)
        local = isinstance(filesystem, LocalFileSystem)
        folder = Path(path).parent if local else Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
        try:
            with open(partial, "xb") as file:
                yield file
            if local:
                partial.replace(path)
            else:
                filesystem.put_file(str(partial), path)
        finally:
            partial.unlink(missing_ok=True)


def create_bytes(uri: str, data: bytes) -> bool:
    """Write the content only if nothing is there yet; of many writers exactly one gets True.

    True: the object is there with exactly our bytes (also when the store's answer was lost and the object, read back,
    turns out to be ours). False: something else is there. Writers that race must therefore write different bytes, for
    example an owner token.
    """
    with explained(uri, "create"):
        return _create(*_open(uri), data)


def exists(uri: str) -> bool:
    """Whether a file, an object or a folder is there."""
    with explained(uri, "look up"):
        filesystem, path = _open(uri)
        try:
            filesystem.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def is_folder(uri: str) -> bool:
    """Whether a folder is there and no file; raises `NotFoundError` when nothing is."""
    with explained(uri, "look up"):
        filesystem, path = _open(uri)
        return bool(filesystem.info(path)["type"] == "directory")


def list_files(uri: str) -> list[str]:
    """URIs of all files below a folder, at any depth, sorted. Empty when the folder is empty or missing."""
    return sorted(list_versions(uri))


def list_versions(uri: str) -> dict[str, str]:
    """URI -> version (as `file_version` gives it) of all files below a folder, by one listing."""
    base = uri.rstrip("/")
    return {f"{base}/{name}": version for name, version in iter_versions(uri)}


def iter_versions(uri: str, *, follow_links: bool = False) -> Iterator[tuple[str, str]]:
    """(path below the folder, version) of all files below a folder, at any depth, in no particular order.

    One listing (S3: a request for every 1,000 objects) that is passed on as it comes. Of a local folder, links that
    lead out of it are no part, unless `follow_links` says so.
    """
    return ((file.path, file.version) for file in iter_files(uri, follow_links=follow_links))


def iter_files(uri: str, *, follow_links: bool = False) -> Iterator[StoredFile]:
    """What `iter_versions` lists, as the listing tells it."""
    files = _files(uri, links="all" if follow_links else "inside")
    return (file for file in files if not file.path.endswith(PARTIAL_SUFFIX))


def links_left_out(uri: str, *, follow_links: bool = False) -> Iterator[LeftOutLink]:
    """The links below a local folder that `iter_files` leaves out; none of a store that has no links."""
    with explained(uri, "list"):
        filesystem, path = _open(uri)
        if isinstance(filesystem, LocalFileSystem):
            yield from local_links_left_out(path, links="all" if follow_links else "inside")


def file_version(uri: str) -> str:
    """What changes when the content changes: the etag of an object; modification time (ns) and size of a local file."""
    with explained(uri, "look up"):
        filesystem, path = _open(uri)
        local = isinstance(filesystem, LocalFileSystem)
        return (local_file(path, os.stat(path)) if local else stored_object(path, filesystem.info(path))).version


def modified_since(uri: str, moment: datetime, *, follow_links: bool = False) -> frozenset[str]:
    """URIs of the files below a folder (or `uri` itself, a file's) that were modified at `moment` or later.

    Listed as `iter_versions` does. A store that tells no time of modification counts as modified.
    """
    base = uri.rstrip("/")
    with explained(uri, "list"), suppress(FileNotFoundError):
        filesystem, path = _open(uri)
        info = filesystem.info(path)
        if info["type"] == "file":
            return frozenset([base] if stored_object(path, info).modified >= moment else [])
    files = iter_files(uri, follow_links=follow_links)
    return frozenset(f"{base}/{file.path}" for file in files if file.modified >= moment)


def list_stored(uri: str) -> Iterator[StoredFile]:
    """Every file below a folder, also the partial files of killed writers; links are left out."""
    return _files(uri, links="none")


def remove_files(uri: str, paths: Sequence[str]) -> None:
    """Remove the files at `paths` below `uri`, and local folders that are empty then; what is gone already is fine."""
    with explained(uri, "remove files below"):
        filesystem, root = _open(uri)

        def remove(path: str) -> None:
            with suppress(FileNotFoundError):
                filesystem.rm_file(join(root, path))

        with ThreadPoolExecutor(_REMOVERS) as removers:
            list(removers.map(remove, paths))
        if isinstance(filesystem, LocalFileSystem):
            folders = {parent for path in paths for parent in Path(path).parents if parent != Path()}
            for folder in sorted(folders, reverse=True):
                with suppress(OSError):
                    Path(root, folder).rmdir()


def check_output(uri: str) -> None:
    """Before work starts: can we write below `uri`, and does the store refuse to create what already exists?

    Creates a small object, tries to create it again, and removes it. A local folder is made when it is missing.
    """
    with explained(uri, "write below"):
        filesystem, path = _open(join(uri, f"_probe-{uuid.uuid4().hex}"))
        created, created_again = _create(filesystem, path, b"first"), _create(filesystem, path, b"second")
        # A folder where nothing may be deleted is still a good place for results.
        with suppress(OSError):
            filesystem.rm_file(path)
    if not created or created_again:
        raise StorageError(
            f"{uri}: cannot keep runs apart there: the output needs a store that refuses to create what exists already "
            "(If-None-Match), but of two writes the second replaced the first: use AWS S3, MinIO, Ceph or a local disk"
        )


def delta_options(uri: str) -> dict[str, str]:
    """`storage_options` with which deltalake reaches the same place by the same settings; empty for a local path."""
    if not s3.is_s3(uri):
        return {}
    with explained(uri, "open"):
        return s3.deltalake_options()


def _open(uri: str) -> tuple[Any, str]:
    """The fsspec file system and the path in it.

    Not by fsspec's `url_to_fs`: that takes `::` in a file name for a chain of file systems.
    """
    protocol, _ = split_protocol(uri)
    if protocol is not None and without_credentials(uri) != uri:
        # It would stand in the table, the manifest and the logs.
        raise StorageError(
            f"{uri}: expected a URI without credentials; they belong into the AWS variables or a profile"
        )
    if s3.is_s3(uri):
        filesystem = fsspec.filesystem("s3", **s3.s3fs_options())
        filesystem.retries = S3_ROUNDS
    else:
        filesystem = fsspec.filesystem(protocol or "file")
    return filesystem, filesystem._strip_protocol(uri)


def _files(uri: str, *, links: Links) -> Iterator[StoredFile]:
    with explained(uri, "list"):
        filesystem, path = _open(uri)
        local = isinstance(filesystem, LocalFileSystem)
        yield from local_files(path, links=links) if local else objects(filesystem, path)


def _head(filesystem: Any, path: str, length: int) -> bytes:
    try:
        return bytes(s3.whole(filesystem.cat_file, path, start=0, end=length))
    except OSError as error:
        if s3.http_status(error) == 416:  # an empty object has no range
            return b""
        raise


def _put(filesystem: Any, path: str, data: bytes, **options: Any) -> None:
    if "s3" in filesystem.protocol:
        options["chunksize"] = SINGLE_PUT_BYTES
    filesystem.pipe_file(path, data, **options)


def _create(filesystem: Any, path: str, data: bytes) -> bool:
    if isinstance(filesystem, LocalFileSystem):
        return _create_local(Path(path), data)
    return _create_object(filesystem, path, data)


def _create_object(filesystem: Any, path: str, data: bytes) -> bool:
    attempt = 1
    while True:
        try:
            _put(filesystem, path, data, mode="create")
            return True
        except (OSError, BotoCoreError) as error:
            status = s3.http_status(error)
            if status is not None and status < 500 and status not in (409, 412):
                raise
            # Refused or unanswered, what counts is what lies there now: a retry inside the client may have met its own
            # first attempt ("already exists", but ours), and not every store's refusal becomes FileExistsError.
            with suppress(FileNotFoundError):
                return bool(s3.whole(filesystem.cat_file, path) == data)
            if status not in (409, 412) or attempt == CREATE_ATTEMPTS:
                raise
        time.sleep(0.05 * 2**attempt)
        attempt += 1


def _create_local(path: Path, data: bytes) -> bool:
    with _local_partial(path, data) as partial:
        try:
            # A hard link is the one local operation that puts a complete file in place and fails when a name is taken.
            os.link(partial, path)
        except FileExistsError:
            return path.read_bytes() == data
    return True


@contextmanager
def _local_partial(path: Path, data: bytes) -> Iterator[Path]:
    """A complete, flushed file beside `path`, removed at the end unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)
