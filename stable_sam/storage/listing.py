"""Lists the files below a folder and yields them as the store names them, so that they are never all in memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from stable_sam.storage import s3


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """What a listing says about one file."""

    path: str
    """Path below the listed folder, with slashes."""
    size: int
    """Size in bytes."""
    modified: datetime
    """Time of the last modification in UTC; `datetime.max` when the store does not give it."""
    version: str
    """A text that changes with the content: an object's etag, or a local file's modification time (ns) and size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutLink:
    """A local link that a listing leaves out."""

    path: str
    """Path below the listed folder, with forward slashes."""
    folder: bool
    """Whether it leads to a folder."""
    broken: bool
    """Whether it leads to nothing."""


Links = Literal["none", "inside", "all"]
"""Which links a listing follows: none, those that lead to a place inside the folder, or all that lead to something."""


def local_files(root: str, *, links: Links) -> Iterator[StoredFile]:
    """Yield the files below a local folder, none when it is missing.

    links: which links are followed. Links that lead nowhere are always left out, and below a linked folder no further
    linked folder is entered, so that circular links end.
    Pipes and devices are left out because reading them may never end. Names that are not valid Unicode are left out
    because no annotation file can contain them.
    """
    for path, entry in _entries(root, links):
        if not isinstance(entry, LeftOutLink):
            with suppress(FileNotFoundError):
                found = entry.stat()
                if stat.S_ISREG(found.st_mode):
                    yield local_file(path, found)


def local_links_left_out(root: str, *, links: Links) -> Iterator[LeftOutLink]:
    """Yield the links that `local_files` leaves out."""
    return (entry for _, entry in _entries(root, links) if isinstance(entry, LeftOutLink))


def local_misnamed(root: str) -> Iterator[str]:
    """Yield the paths below `root` that `local_files` leaves out because a name is not valid Unicode, escaped."""
    for folder, folders, files in os.walk(root):
        strange = (os.path.join(folder, name) for name in (*folders, *files) if not _is_unicode(name))
        yield from (os.path.relpath(path, root).encode("utf-8", "backslashreplace").decode() for path in strange)


def _entries(root: str, links: Links) -> Iterator[tuple[str, os.DirEntry[str] | LeftOutLink]]:
    """Yield all entries below `root` that are not folders, each with its path; links that are left out included."""
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
                if not _is_unicode(entry.name):
                    continue
                path, link = folder + entry.name, entry.is_symlink()
                if link and not _followed(entry.path, links, inside):
                    broken = not os.path.exists(entry.path)
                    yield path, LeftOutLink(path=path, folder=not broken and entry.is_dir(), broken=broken)
                elif not entry.is_dir():
                    yield path, entry
                elif not (link and linked):
                    folders.append((f"{path}/", link or linked))


def objects(filesystem: Any, path: str) -> Iterator[StoredFile]:
    """Yield the objects below `path` in a file system of fsspec; on S3 page by page, by a request for every 1,000."""
    root = path.rstrip("/") + "/"
    listed = _s3_pages(filesystem, root) if "s3" in filesystem.protocol else _found(filesystem, path)
    for name, info in listed:
        if name.startswith(root) and not name.endswith("/"):
            yield stored_object(name.removeprefix(root), info)


def local_file(path: str, found: os.stat_result) -> StoredFile:
    """Describe a local file by its `stat` result."""
    return StoredFile(
        path=path,
        size=found.st_size,
        modified=datetime.fromtimestamp(found.st_mtime, UTC),
        version=f"{found.st_mtime_ns}-{found.st_size}",
    )


def stored_object(path: str, info: dict[str, Any]) -> StoredFile:
    """Describe an object by an entry of S3's listing or by fsspec's `info`."""
    size = info["Size"] if "Size" in info else info["size"]
    etag = info.get("ETag") or info.get("etag")
    when = info.get("LastModified") or info.get("mtime")
    if isinstance(when, float | int):
        when = datetime.fromtimestamp(when, UTC)
    return StoredFile(
        path=path,
        size=size,
        modified=when if isinstance(when, datetime) else datetime.max.replace(tzinfo=UTC),
        version=str(etag).strip('"') if etag else f"{info.get('mtime') or info.get('created')}-{size}",
    )


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _followed(path: str, links: Links, inside: str) -> bool:
    if links == "all":
        return os.path.exists(path)
    return links == "inside" and os.path.exists(path) and (os.path.realpath(path) + os.sep).startswith(inside)


def _s3_pages(filesystem: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """List objects page by page, because s3fs's own listing would hold the descriptions of all objects in memory."""
    bucket, _, key = prefix.partition("/")
    page: dict[str, Any] = {"NextContinuationToken": None}
    while "NextContinuationToken" in page:
        token = page["NextContinuationToken"]
        more = {} if token is None else {"ContinuationToken": token}
        page = s3.whole(filesystem.call_s3, "list_objects_v2", Bucket=bucket, Prefix=key, **more)
        yield from ((f"{bucket}/{info['Key']}", info) for info in page.get("Contents", ()))


def _found(filesystem: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
    yield from ((name, info) for name, info in found.items() if info["type"] == "file")
