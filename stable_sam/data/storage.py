"""Files and objects by URI: the only module that writes. Local paths, `s3://`, and whatever else fsspec knows.

S3 takes its settings from the usual variables: AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3), AWS_REGION (or
AWS_DEFAULT_REGION), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, and wherever else
botocore looks. Every function raises `StorageError` or one of its subclasses, in one line that begins with the URI.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from stable_sam.data import s3
from stable_sam.errors import CredentialsError, NotFoundError, StableSamError, StorageError, one_line

PARTIAL_SUFFIX = ".stable-sam-partial"
"""Ending of local files that are still being written; what a killed writer leaves under this name is never listed."""
SINGLE_PUT_BYTES = 5 * 2**30
"""S3's limit for one PUT. s3fs splits far smaller objects, and not every store honours conditions on split uploads."""
S3_ROUNDS = 2
"""Rounds of s3fs around botocore's own four attempts: an outage of seconds is ridden out, a dead endpoint told soon."""
CREATE_ATTEMPTS = 5
"""S3 answers 409 when two create-only writes meet; the request then has to be repeated."""


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`, with exactly one slash between the parts."""
    base = uri if uri.endswith("://") else uri.rstrip("/") + "/"
    return base + "/".join(part.strip("/") for part in parts)


def absolute_uri(uri: str) -> str:
    """A local path made absolute, `~` included, for those who stand in another folder; a URI as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def read_bytes(uri: str) -> bytes:
    """The whole content; `NotFoundError` when there is nothing."""
    with _explained(uri, "read"):
        filesystem, path = _open(uri)
        content: bytes = filesystem.cat_file(path)
        return content


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
    with _explained(uri, "list"):
        filesystem, path = _open(uri)
        if isinstance(filesystem, LocalFileSystem):
            return {f"{base}/{name}": version for name, version in _local_files(Path(path))}
        found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
        root = path.rstrip("/") + "/"
        return {
            f"{base}/{name.removeprefix(root)}": _object_version(info)
            for name, info in found.items()
            if info["type"] == "file" and name.startswith(root) and not name.endswith("/")
        }


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
    if _is_s3(uri):
        filesystem = fsspec.filesystem("s3", **s3.s3fs_options())
        filesystem.retries = S3_ROUNDS
    else:
        filesystem = fsspec.filesystem(protocol or "file")
    return filesystem, filesystem._strip_protocol(uri)


def _is_s3(uri: str) -> bool:
    return split_protocol(uri)[0] in s3.S3_PROTOCOLS


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
                return bool(filesystem.cat_file(path) == data)
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


def _local_files(root: Path) -> Iterator[tuple[str, str]]:
    """(path relative to root with slashes, version) of each file; links are followed unless they lead nowhere."""

    def fail(error: OSError) -> None:
        if error.errno != errno.ENOENT:
            raise error

    for folder, _, names in os.walk(root, onerror=fail, followlinks=True):
        for name in names:
            if name.endswith(PARTIAL_SUFFIX):
                continue
            path = Path(folder, name)
            with suppress(FileNotFoundError):
                yield path.relative_to(root).as_posix(), _local_version(path.stat())


def _local_version(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns}-{stat.st_size}"


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


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return error.strerror
    return one_line(error)
