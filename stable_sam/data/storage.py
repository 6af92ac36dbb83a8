"""Files and objects by URI: the only module that writes. Local paths, `s3://`, and whatever else fsspec knows.

S3 takes its settings from the usual variables: AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3), AWS_REGION (or
AWS_DEFAULT_REGION), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, and wherever else
botocore looks. Every function raises `StorageError` or one of its subclasses, in one line that begins with the URI.
"""

from __future__ import annotations

import io
import os
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from stable_sam.data import s3
from stable_sam.errors import (
    CredentialsError,
    NotFoundError,
    StableSamError,
    StorageError,
    one_line,
    without_credentials,
)

PARTIAL_SUFFIX = ".stable-sam-partial"
"""Ending of local files that are still being written; what a killed writer leaves under this name is never listed."""
SINGLE_PUT_BYTES = 5 * 2**30
"""S3's limit for one PUT. s3fs splits far smaller objects, and not every store honours conditions on split uploads."""
BLOCK_BYTES = 4 * 2**20
"""Of a stream: one request of S3, big enough to hide its round trip."""
S3_ROUNDS = 2
"""Rounds of s3fs around botocore's own four attempts: an outage of seconds is ridden out, a dead endpoint told soon."""
ANSWER_ATTEMPTS = 4
"""For an answer that breaks off in the middle, each with `S3_ROUNDS` of its own, which nobody counts as an error."""
CREATE_ATTEMPTS = 5
"""S3 answers 409 when two create-only writes meet; the request then has to be repeated."""

_REMOVERS = 16
"""Files removed at the same time: each costs a round trip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file as a listing tells it."""

    path: str
    """Below the folder that was listed."""
    size: int
    """Bytes."""
    modified: datetime
    """UTC; the far future where the store tells no time."""


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`, with exactly one slash between the parts."""
    base = uri if uri.endswith("://") else uri.rstrip("/") + "/"
    return base + "/".join(part.strip("/") for part in parts)


def absolute_uri(uri: str) -> str:
    """A local path made absolute, `~` included, for those who stand in another folder; a URI as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def read_bytes(uri: str, *, max_bytes: int | None = None) -> bytes:
    """The whole content; `NotFoundError` when there is nothing, `StorageError` when it is longer than `max_bytes`."""
    with _explained(uri, "read"):
        filesystem, path = _open(uri)
        content: bytes = (
            _whole(filesystem.cat_file, path) if max_bytes is None else _head(filesystem, path, max_bytes + 1)
        )
        if max_bytes is not None and len(content) > max_bytes:
            raise StorageError(f"{uri}: cannot read: expected at most {max_bytes} bytes, got a larger file")
        return content


def open_stream(uri: str) -> BinaryIO:
    """The content as a seekable file that is read in blocks and never held whole; close it at the end.

    Raises `NotFoundError` when there is nothing; reading raises `StorageError`, also when an object is replaced
    meanwhile.
    """
    with _explained(uri, "read"):
        filesystem, path = _open(uri)
        file = filesystem.open(path, "rb", block_size=BLOCK_BYTES, cache_type="none")
        if not file.seekable():
            file.close()
            raise StorageError(f"{uri}: cannot read: expected a file, got a pipe or a terminal")
        return io.BufferedReader(_Explained(file, uri), BLOCK_BYTES)


def write_bytes(uri: str, data: bytes) -> None:
    """Write or replace the whole content: readers see the old or the new bytes, never a part (S3: one PUT)."""
    with _explained(uri, "write"):
        filesystem, path = _open(uri)
        if isinstance(filesystem, LocalFileSystem):
            with _local_partial(Path(path), data) as partial:
                partial.replace(path)
        else:
            _put(filesystem, path, data)


def create_bytes(uri: str, data: bytes) -> bool:
    """Write the content only if nothing is there yet; of many writers exactly one gets True.

    True: the object is there with exactly our bytes (also when the store's answer was lost and the object, read back,
    turns out to be ours). False: something else is there. Writers that race must therefore write different bytes, for
    example an owner token.
    """
    with _explained(uri, "create"):
        return _create(*_open(uri), data)


def exists(uri: str) -> bool:
    """Whether a file, an object or a folder is there."""
    with _explained(uri, "look up"):
        filesystem, path = _open(uri)
        try:
            filesystem.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def list_files(uri: str) -> list[str]:
    """URIs of all files below a folder, at any depth, sorted. Empty when the folder is empty or missing."""
    return sorted(list_versions(uri))


def list_versions(uri: str) -> dict[str, str]:
    """URI -> version (as `file_version` gives it) of all files below a folder, by one listing."""
    base = uri.rstrip("/")
    return {f"{base}/{name}": version for name, version in iter_versions(uri)}


def iter_versions(uri: str) -> Iterator[tuple[str, str]]:
    """(path below the folder, version) of all files below a folder, at any depth, in no particular order.

    One listing (S3: a request for every 1,000 objects) that is passed on as it comes. Of a local folder, links that
    lead out of it are no part.
    """
    with _explained(uri, "list"):
        filesystem, path = _open(uri)
        if isinstance(filesystem, LocalFileSystem):
            yield from ((name, _local_version(found)) for name, found in _local_files(path))
            return
        root = path.rstrip("/") + "/"
        for name, version in _s3_objects(filesystem, root) if _is_s3(uri) else _objects(filesystem, path):
            if name.startswith(root) and not name.endswith("/"):
                yield name.removeprefix(root), version


def file_version(uri: str) -> str:
    """What changes when the content changes: the etag of an object; modification time (ns) and size of a local file."""
    with _explained(uri, "look up"):
        filesystem, path = _open(uri)
        if isinstance(filesystem, LocalFileSystem):
            return _local_version(os.stat(path))
        return _object_version(filesystem.info(path))


def modified_since(uri: str, moment: datetime) -> frozenset[str]:
    """URIs of the files below a folder (or `uri` itself, a file's) that were modified at `moment` or later.

    A store that tells no time of modification counts as modified.
    """
    base = uri.rstrip("/")
    with _explained(uri, "list"):
        filesystem, path = _open(uri)
        root = path.rstrip("/")
        found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
        return frozenset(base + name.removeprefix(root) for name, info in found.items() if _modified(info) >= moment)


def list_stored(uri: str) -> Iterator[StoredFile]:
    """Every file below a folder, also the partial files of killed writers; links are left out."""
    with _explained(uri, "list"):
        filesystem, path = _open(uri)
        root = path.rstrip("/") + "/"
        found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
        for name, info in found.items():
            if name.startswith(root) and not name.endswith("/") and not info.get("islink"):
                yield StoredFile(path=name.removeprefix(root), size=info["size"], modified=_modified(info))


def remove_files(uri: str, paths: Sequence[str]) -> None:
    """Remove the files at `paths` below `uri`, and local folders that are empty then; what is gone already is fine."""
    with _explained(uri, "remove files below"):
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
    with _explained(uri, "write below"):
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
    if not _is_s3(uri):
        return {}
    with _explained(uri, "open"):
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
    if _is_s3(uri):
        filesystem = fsspec.filesystem("s3", **s3.s3fs_options())
        filesystem.retries = S3_ROUNDS
    else:
        filesystem = fsspec.filesystem(protocol or "file")
    return filesystem, filesystem._strip_protocol(uri)


def _is_s3(uri: str) -> bool:
    return split_protocol(uri)[0] in s3.S3_PROTOCOLS


def _whole(ask: Any, *arguments: Any, **options: Any) -> Any:
    """What `ask` returns, asked again when the answer broke off in the middle."""
    for _ in range(ANSWER_ATTEMPTS - 1):
        try:
            return ask(*arguments, **options)
        except Exception as error:
            if not s3.is_broken_answer(error):
                raise
    return ask(*arguments, **options)


def _head(filesystem: Any, path: str, length: int) -> bytes:
    try:
        return bytes(_whole(filesystem.cat_file, path, start=0, end=length))
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
                return bool(_whole(filesystem.cat_file, path) == data)
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


def _local_files(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """(path below root, with slashes; stat) of each file.

    A stranger's folder may hold links to anywhere: those that lead nowhere or out of `root` are left out, and below a
    linked folder no further linked folder is entered, so that links in a circle end. Pipes and devices never end, and
    names that are no Unicode can stand in no annotation file: they are left out, too.
    """
    inside = os.path.realpath(root) + os.sep
    folders = [("", False)]
    while folders:
        folder, linked = folders.pop()
        try:
            entries = os.scandir(os.path.join(root, folder))
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                link = entry.is_symlink()
                if not _is_unicode(entry.name) or (link and not _leads_inside(entry.path, inside)):
                    continue
                if entry.is_dir():
                    if not (link and linked):
                        folders.append((f"{folder}{entry.name}/", link or linked))
                elif not entry.name.endswith(PARTIAL_SUFFIX):
                    with suppress(FileNotFoundError):
                        found = entry.stat()
                        if stat.S_ISREG(found.st_mode):
                            yield folder + entry.name, found


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _leads_inside(path: str, folder: str) -> bool:
    return (os.path.realpath(path) + os.sep).startswith(folder)


def _s3_objects(filesystem: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """(bucket/key, version) of each object; s3fs itself would hold a description of every object at once."""
    bucket, _, key = prefix.partition("/")
    page: dict[str, Any] = {"NextContinuationToken": None}
    while "NextContinuationToken" in page:
        token = page["NextContinuationToken"]
        more = {} if token is None else {"ContinuationToken": token}
        page = _whole(filesystem.call_s3, "list_objects_v2", Bucket=bucket, Prefix=key, **more)
        yield from ((f"{bucket}/{found['Key']}", _object_version(found)) for found in page.get("Contents", ()))


def _objects(filesystem: Any, path: str) -> Iterator[tuple[str, str]]:
    found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
    yield from ((name, _object_version(info)) for name, info in found.items() if info["type"] == "file")


class _Explained(io.RawIOBase):
    """A file of fsspec whose errors are explained like all others."""

    def __init__(self, file: Any, uri: str) -> None:
        self._file, self._uri = file, uri

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _explained(self._uri, "read"):
            data = _whole(self._file.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _local_version(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns}-{found.st_size}"


def _object_version(info: dict[str, Any]) -> str:
    etag = info.get("ETag") or info.get("etag")
    return str(etag).strip('"') if etag else f"{info.get('mtime') or info.get('created')}-{info['size']}"


def _modified(info: dict[str, Any]) -> datetime:
    when = info.get("LastModified") or info.get("mtime")
    if isinstance(when, float | int):
        return datetime.fromtimestamp(when, UTC)
    return when if isinstance(when, datetime) else datetime.max.replace(tzinfo=UTC)


@contextmanager
def _explained(uri: str, action: str) -> Iterator[None]:
    """Turn what fsspec, s3fs and botocore raise into one line that names the URI."""
    try:
        yield
    except StableSamError:
        raise
    except s3.NO_CREDENTIALS_ERRORS as error:
        raise CredentialsError(
            f"{uri}: cannot {action}: no S3 credentials ({_reason(error)}): "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except FileNotFoundError as error:
        missing = "no such bucket" if s3.error_code(error) == "NoSuchBucket" else "not found"
        raise NotFoundError(f"{uri}: cannot {action}: {missing}") from error
    except (OSError, BotoCoreError, ValueError, ImportError) as error:
        if _is_s3(uri) and (
            s3.http_status(error) in (401, 403) or s3.error_code(error) in s3.REFUSED_CREDENTIALS_CODES
        ):
            raise CredentialsError(
                f"{uri}: cannot {action}: the store refused the credentials: {_reason(error)}"
            ) from error
        raise StorageError(f"{uri}: cannot {action}: {_reason(error)}") from error
    except Exception as error:
        if s3.is_broken_answer(error):
            raise StorageError(f"{uri}: cannot {action}: {_reason(error)}") from error
        raise


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return error.strerror
    return one_line(error)
