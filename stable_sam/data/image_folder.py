"""Which image a name in an annotation file means: one listing of the folder instead of one request for each name."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from stable_sam.data import storage
from stable_sam.errors import ImageError, NotFoundError

WINDOWS_DRIVE = re.compile(r"[A-Za-z]:")


class ImageFolder:
    """The files below a folder, at any depth."""

    def __init__(self, uri: str) -> None:
        """List the folder; raises `NotFoundError` when no file is there, `StorageError` when it cannot be listed."""
        self.uri = uri.rstrip("/") if not uri.endswith("://") else uri
        self._uris = frozenset(storage.list_files(uri))
        if not self._uris:
            raise NotFoundError(f"{uri}: expected a folder of images, found no file there")

    def find(self, name: Any) -> str:
        """URI of the image that an annotation file calls `name`; raises `ImageError` when it is not in the folder.

        A name is a path below the folder. It may begin with the folder's own name, because many files are written
        relative to the folder above (`images/cat.jpg` with the folder `.../images`).
        """
        relative = relative_name(name)
        parent, _, rest = relative.partition("/")
        candidates = [relative]
        if rest and parent == self.uri.rpartition("/")[2]:
            candidates.append(rest)
        for candidate in candidates:
            uri = storage.join(self.uri, candidate)
            if uri in self._uris:
                return uri
        raise ImageError(f"image file {name!r} is not below {self.uri}")

    def find_uri(self, uri: str) -> str:
        """The image that a full URI names: checked against the listing below this folder, taken as it is elsewhere."""
        if uri.startswith(self.uri + "/") and uri not in self._uris:
            raise ImageError(f"image file {uri!r} does not exist")
        return uri


def relative_name(name: Any) -> str:
    """`name` with slashes and without leading `./`; raises `ImageError` unless it is a path that stays below."""
    if not isinstance(name, str) or not name.strip():
        raise ImageError(f"expected the name of an image file, got {name!r:.80}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ImageError(f"expected the name of an image file in valid Unicode, got {name!r:.80}") from None
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or not path.parts or ".." in path.parts or WINDOWS_DRIVE.match(name):
        raise ImageError(f"expected an image file below the image folder, got {name!r:.200}, which leads out of it")
    return path.as_posix()
