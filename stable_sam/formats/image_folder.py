"""Finds the images that annotation files name, by one listing of the folder instead of one request for each name."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from stable_sam.errors import ImageError, NotFoundError
from stable_sam.storage import files as storage

WINDOWS_DRIVE = re.compile(r"[A-Za-z]:")
PLAIN_NAME = re.compile(r"[^/.\\: \t\n][^/\\:]*(/[^/.\\:][^/\\:]*)*")
"""Names that are paths as they stand. All others are normalised by pathlib, which takes ten times as long."""
FILE_URI = "file://"


class ImageFolder:
    """The files below a folder, at any depth: the only images that annotations may name.

    A name takes about 150 bytes of memory. Every name has a number, so that callers can keep facts about it in arrays.
    """

    def __init__(self, uri: str) -> None:
        """List the folder; raises `NotFoundError` when it holds no file, `StorageError` when it cannot be listed."""
        self.uri = uri.rstrip("/") if not uri.endswith("://") else uri
        names = (name for name, _ in storage.iter_versions(uri))
        self._numbers = {name: number for number, name in enumerate(names)}
        if not self._numbers:
            raise NotFoundError(f"{uri}: expected a folder of images, found no file there")
        self._base = storage.join(self.uri, "")
        self._own_name = self.uri.rpartition("/")[2]

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, name: str) -> int | None:
        """Return the number of the file at this path below the folder, from 0; None when there is no such file."""
        return self._numbers.get(name)

    def find(self, name: Any) -> str:
        """Return the URI of the image that an annotation file calls `name`.

        A name is a path below the folder. It may begin with the folder's own name, because many annotation files are
        written relative to the folder above (`images/cat.jpg` with the folder `.../images`). Raises `ImageError` when
        the image is not in the folder.
        """
        uri = self.look_up(name)
        if uri is None:
            raise ImageError(f"image file {name!r:.200} is not below {self.uri}{self._links()}")
        return uri

    def look_up(self, name: Any) -> str | None:
        """Return what `find` returns, or None when the image is not in the folder.

        Raises `ImageError` for a name that is no path or leads out of the folder.
        """
        relative = relative_name(name)
        if relative in self._numbers:
            return self._base + relative
        parent, _, rest = relative.partition("/")
        return self._base + rest if parent == self._own_name and rest in self._numbers else None

    def find_uri(self, uri: str) -> str:
        """Return the URI of the image that a full URI names; raises `ImageError` when it is not in the folder."""
        inside = _bare(self._base)
        if not _bare(uri).startswith(inside):
            raise ImageError(f"expected an image file below the image folder {self.uri}, got {uri!r:.200}")
        name = _bare(uri).removeprefix(inside)
        if name not in self._numbers:
            raise ImageError(f"image file {uri!r:.200} does not exist{self._links()}")
        return self._base + name

    def _links(self) -> str:
        return " (links that lead out of it are not followed)" if "://" not in _bare(self.uri) else ""


def relative_name(name: Any) -> str:
    """Return `name` with forward slashes and without a leading `./`.

    Raises `ImageError` unless it is a relative path without `..`.
    """
    if not isinstance(name, str) or not name.strip():
        raise ImageError(f"expected the name of an image file, got {name!r:.80}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ImageError(f"expected the name of an image file in valid Unicode, got {name!r:.80}") from None
    if PLAIN_NAME.fullmatch(name):
        return name
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or not path.parts or ".." in path.parts or WINDOWS_DRIVE.match(name):
        raise ImageError(f"expected an image file below the image folder, got {name!r:.200}, which leads out of it")
    return path.as_posix()


def _bare(uri: str) -> str:
    return uri.removeprefix(FILE_URI)
