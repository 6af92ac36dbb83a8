"""Which image an annotation file means that names it in one of several ways, or only by its own name."""

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
    """An image of the folder, or why there is none."""

    image_id: str
    """Path below the image folder; when there is no such image, the name as it was given."""
    uri: str = ""
    problem: str | None = None


def find_image(folder: ImageFolder, given: Any, names: Iterable[Any]) -> FoundImage:
    """The first of `names` that is an image of the folder, or else `given`, what the annotation file calls it."""
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
    """The names that an image called `stem` may have."""
    return (f"{stem}.{ending}" for ending in ENDINGS)


def beside(stem: str, name: Any) -> Iterator[Any]:
    """The names that an image may have which the annotation file `stem` calls `name`: in a folder of images like that
    of the annotations, as it is, and like the annotation file itself."""
    folder = stem.rpartition("/")[0]
    if name is not None and folder:
        yield f"{folder}/{name}"
    if name is not None:
        yield name
    yield from with_endings(stem)
