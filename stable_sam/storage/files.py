"""Reads and writes files and objects by their URI: local paths, `s3://`, and all other protocols of fsspec. No other
module writes.

S3 is configured by the usual variables AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3), AWS_REGION (or AWS_DEFAULT_REGION),
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE, and by everything else that botocore reads.
Every function raises `StorageError` or one of its subclasses, with a message of one line that begins with the URI.
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
    local_misnamed,
    objects,
    stored_object,
)
from stable_sam.storage.storage_errors import explained, explained_file, web_failure
from stable_sam.storage.uris import join

PARTIAL_SUFFIX = ".stable-sam-partial"
"""Ending of local files that are still being written. Listings leave such files out, also those of killed writers."""
SINGLE_PUT_BYTES = 5 * 2**30
"""S3's limit for one PUT. s3fs splits far smaller objects, and not every store honours conditions on split uploads."""
BLOCK_BYTES = 4 * 2**20
"""Bytes that a stream reads with one request of S3, enough to hide the round trip."""
S3_ROUNDS = 2
"""Rounds of s3fs around botocore's own four attempts: an outage of seconds passes, and a dead store soon fails."""
CREATE_ATTEMPTS = 5
"""Attempts of a create-only write. S3 answers 409 when two of them meet, and the request then has to be repeated."""
_REMOVERS = 16
"""Files that are removed at the same time, because each removal waits for a round trip."""


def read_bytes(uri: str, *, max_bytes: int | None = None) -> bytes:
    """Read the whole content.

    Raises `NotFoundError` when nothing lies there and `StorageError` when the content is longer than `max_bytes`.
    """
    with explained(uri, "read"):
        filesystem, path = _open(uri)
        if max_bytes is None:
            return bytes(s3.whole(filesystem.cat_file, path))
        content = _head(filesystem, path, max_bytes + 1)
    if len(content) > max_bytes:
        raise StorageError(f"{uri}: cannot read: expected at most {max_bytes} bytes, got a larger file")
    return content


def read_head(uri: str, length: int) -> bytes:
    """Read the first `length` bytes, or all of a shorter file, by one request.

    Raises `NotFoundError` when nothing lies there.
    """
    with explained(uri, "read"):
        return _head(*_open(uri), length)


def open_stream(uri: str) -> BinaryIO:
    """Open the content as a seekable file that is read in blocks and never held whole. The caller closes it.

    Raises `NotFoundError` when nothing lies there. Reading raises `StorageError`, also when the object is replaced
    while it is read.
    """
    with explained(uri, "read"):
        filesystem, path = _open(uri)
        file = filesystem.open(path, "rb", block_size=BLOCK_BYTES, cache_type="none")
        if not file.seekable():
            file.close()
            raise StorageError(f"{uri}: cannot read: expected a file, got a pipe or a terminal")
        return io.BufferedReader(explained_file(file, uri), BLOCK_BYTES)


def write_bytes(uri: str, data: bytes) -> None:
    """Write or replace the whole content (on S3 by one PUT). Readers see the old or the new bytes, never a part."""
    with explained(uri, "write"):
        filesystem, path = _open(uri)
        if isinstance(filesystem, LocalFileSystem):
            with _local_partial(Path(path), data) as partial:
                partial.replace(path)
        else:
            _put(filesystem, path, data)


@contextmanager
def write_stream(uri: str) -> Iterator[BinaryIO]:
    """Open a file of any length for writing. Its content lies at `uri` once the block ends, but not when it raises.

    Until then the content is in a local file, which lies beside `uri` when `uri` is local.
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
    """Write the content only if nothing is there yet. Of many writers exactly one gets True.

    Returns True when the object is there with exactly these bytes, also when the store's answer was lost and the object
    is read back and found equal. Returns False when something else is there. Writers that race must therefore write
    different bytes, for example an owner token.
    """
    with explained(uri, "create"):
        return _create(*_open(uri), data)


def exists(uri: str) -> bool:
    """Tell whether a file, an object or a folder lies at the URI."""
    with explained(uri, "look up"):
        filesystem, path = _open(uri)
        try:
            filesystem.info(path)
        except NotADirectoryError:
            return False
        except FileNotFoundError as error:
            if web_failure(error) is not None:
                raise
            return False
        return True


def is_folder(uri: str) -> bool:
    """Tell whether a folder, and not a file, lies at the URI; raises `NotFoundError` when nothing does."""
    with explained(uri, "look up"):
        filesystem, path = _open(uri)
        return bool(filesystem.info(path)["type"] == "directory")


def list_files(uri: str) -> list[str]:
    """Return the sorted URIs of all files below a folder, at any depth; none when the folder is empty or missing."""
    return sorted(list_versions(uri))


def list_versions(uri: str) -> dict[str, str]:
    """Return the version, as `file_version` does, of every file below a folder by its URI, with one listing."""
    base = uri.rstrip("/")
    return {f"{base}/{name}": version for name, version in iter_versions(uri)}


def iter_versions(uri: str, *, follow_links: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (path below the folder, version) of all files below a folder, at any depth, in no particular order.

    One listing is passed on page by page (S3: a request for every 1,000 objects). In a local folder, links that lead
    out of it are left out unless `follow_links` is true.
    """
    return ((file.path, file.version) for file in iter_files(uri, follow_links=follow_links))


def iter_files(uri: str, *, follow_links: bool = False) -> Iterator[StoredFile]:
    """Yield the files that `iter_versions` lists, with all that the listing says about them."""
    files = _files(uri, links="all" if follow_links else "inside")
    return (file for file in files if not file.path.endswith(PARTIAL_SUFFIX))


def is_local_entry(uri: str) -> bool:
    """Whether a file, a folder or a link, even one to nothing, is at this place on a disk; False in object stores."""
    with explained(uri, "look up"):
        filesystem, path = _open(uri)
        return isinstance(filesystem, LocalFileSystem) and os.path.lexists(path)


def misnamed(uri: str) -> Iterator[str]:
    """Yield the paths below a local folder that no listing has because their names are not UTF-8; for messages only."""
    with explained(uri, "list"):
        filesystem, path = _open(uri)
        return local_misnamed(path) if isinstance(filesystem, LocalFileSystem) else iter(())


def links_left_out(uri: str, *, follow_links: bool = False) -> Iterator[LeftOutLink]:
    """Yield the links below a local folder that `iter_files` leaves out; object stores have no links."""
    with explained(uri, "list"):
        filesystem, path = _open(uri)
        if isinstance(filesystem, LocalFileSystem):
            yield from local_links_left_out(path, links="all" if follow_links else "inside")


def file_version(uri: str) -> str:
    """Return a text that changes with the content: the etag, or a local file's modification time (ns) and size."""
    with explained(uri, "look up"):
        filesystem, path = _open(uri)
        local = isinstance(filesystem, LocalFileSystem)
        return (local_file(path, os.stat(path)) if local else stored_object(path, filesystem.info(path))).version


def modified_since(uri: str, moment: datetime, *, follow_links: bool = False) -> frozenset[str]:
    """Return the URIs of the files below a folder, or of the file `uri` itself, that were modified since `moment`.

    Leaves out the files that `iter_versions` leaves out. In a store without modification times all files count as
    modified.
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
    """Yield every file below a folder, also the partial files of killed writers; links are left out."""
    return _files(uri, links="none")


def remove_files(uri: str, paths: Sequence[str]) -> None:
    """Remove the files at `paths` below `uri`, and local folders that are then empty. Missing files are ignored."""
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
    """Check before work starts that `uri` can be written to and that its store refuses to create what already exists.

    Creates a small object, tries to create it again, and removes it. A missing local folder is created.
    Raises `StorageError`.
    """
    with explained(uri, "write below"):
        filesystem, path = _open(join(uri, f"_probe-{uuid.uuid4().hex}"))
        created, created_again = _create(filesystem, path, b"first"), _create(filesystem, path, b"second")
        # A folder in which nothing may be deleted can still hold results.
        with suppress(OSError):
            filesystem.rm_file(path)
    if not created or created_again:
        raise StorageError(
            f"{uri}: cannot keep runs apart there: expected a store that refuses to create what already exists "
            "(If-None-Match), but the second of two writes replaced the first; use AWS S3, MinIO, Ceph or a local disk"
        )


def delta_options(uri: str) -> dict[str, str]:
    """Return the `storage_options` with which deltalake opens `uri` as this module does; empty for a local path."""
    if not s3.is_s3(uri):
        return {}
    with explained(uri, "open"):
        return s3.deltalake_options()


def _open(uri: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URI and the path in it.

    fsspec's `url_to_fs` would take `::` in a file name for a chain of file systems.
    """
    protocol, _ = split_protocol(uri)
    if protocol is not None and without_credentials(uri) != uri:
        # The credentials would be stored in the table, the manifest and the logs.
        raise StorageError(f"{uri}: expected a URI without credentials; put them into the AWS variables or a profile")
    if s3.is_s3(uri):
        filesystem = fsspec.filesystem("s3", **s3.s3fs_options())
        filesystem.retries = S3_ROUNDS
    elif protocol in ("http", "https"):
        from aiohttp import ClientTimeout  # takes a third of a second, which only these addresses need

        # Proxies of the environment; no limit for a whole file, which fsspec would set to five minutes.
        options = {"trust_env": True, "timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60)}
        filesystem = fsspec.filesystem(protocol, client_kwargs=options)
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
        if s3.http_status(error) == 416:  # the store refuses every range of an empty object
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
            # Whether the write was refused or unanswered, the object that lies there now decides: a retry inside the
            # client may have met its own first attempt, and not every store's refusal becomes FileExistsError.
            with suppress(FileNotFoundError):
                return bool(s3.whole(filesystem.cat_file, path) == data)
            if status not in (409, 412) or attempt == CREATE_ATTEMPTS:
                raise
        time.sleep(0.05 * 2**attempt)
        attempt += 1


def _create_local(path: Path, data: bytes) -> bool:
    with _local_partial(path, data) as partial:
        try:
            # Only a hard link both puts a complete local file in place and fails when the name is taken.
            os.link(partial, path)
        except FileExistsError:
            return path.read_bytes() == data
    return True


@contextmanager
def _local_partial(path: Path, data: bytes) -> Iterator[Path]:
    """Write a complete, flushed file beside `path`, which is removed at the end unless it was renamed."""
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
