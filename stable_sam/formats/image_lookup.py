"""Finds the image of an annotation file that names it in one of several ways, or only by the file's own name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stable_sam.errors import ImageError, without_credentials
from stable_sam.formats.image_folder import ImageFolder
from stable_sam.formats.source_annotation import id_text
from stable_sam.storage.files import join

_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "avif", "jp2", "ppm", "tga")
ENDINGS = (*_ENDINGS, *(ending.upper() for ending in _ENDINGS))


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImage:
    """An image of the image folder, or the reason why none was found."""

    image_id: str
    """Path below the image folder; when there is no such image, the name that the annotation file gives."""
    uri: str = ""
    """URI of the image; empty when there is no such image."""
    problem: str | None = None
    """Why there is no such image; None when there is one."""


def find_image(folder: ImageFolder, given: Any, names: Iterable[Any]) -> FoundImage:
    """Return the first of `names` that is in the folder, or else the image `given`, as the annotation file calls it."""
    for name in names:
        with suppress(ImageError):
            uri = folder.look_up(name)
            if uri is not None:
                return _found(folder, uri)
    try:
        return _found(folder, folder.find(given))
    except ImageError as error:
        return FoundImage(image_id=without_credentials(id_text(given) or ""), problem=str(error))


def _found(folder: ImageFolder, uri: str) -> FoundImage:
    return FoundImage(image_id=uri.removeprefix(join(folder.uri, "")), uri=uri)


def with_endings(stem: str) -> Iterator[str]:
    """Yield the names that the file of an image called `stem` may have: one for each ending in `ENDINGS`."""
    return (f"{stem}.{ending}" for ending in ENDINGS)


def beside(stem: str, name: Any) -> Iterator[Any]:
    """Yield the paths at which to look for the image that an annotation file calls `name`, the likeliest first.

    `stem` is the annotation file's path below its folder, without the ending. The paths are `name` in the subfolder
    of the annotation file, `name` itself, and `stem` with the ending of an image.
    """
    folder = stem.rpartition("/")[0]
    if name is not None and folder:
        yield f"{folder}/{name}"
    if name is not None:
        yield name
    yield from with_endings(stem)
