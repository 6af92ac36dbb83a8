"""The files that came back from a review, and the list of what was sent with the export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from stable_sam.errors import AnnotationError, NotFoundError
from stable_sam.formats.export_records import SENT
from stable_sam.formats.reading import PACKED_BYTES, check_unpacked
from stable_sam.formats.review_records import SentImage, is_revision, reviewed_size
from stable_sam.storage.files import is_folder, iter_versions, open_stream, read_bytes
from stable_sam.storage.json_stream import JsonStream
from stable_sam.storage.uris import join

MAX_FILE_BYTES = 512 * 2**20
"""Largest size of a file that is read as a whole."""


class Sent:
    """The list of what was sent with an export, by the names of its images."""

    def __init__(self, images: Mapping[str, SentImage]) -> None:
        self.images = images
        self._by_uri = {image.image_uri: image for image in images.values() if image.image_uri}
        self._by_file: dict[str, list[SentImage]] = {}
        self._by_stem: dict[str, list[SentImage]] = {}
        for name, image in images.items():
            self._by_file.setdefault(PurePosixPath(name).name, []).append(image)
            self._by_stem.setdefault(PurePosixPath(name).stem, []).append(image)

    def find(self, name: str) -> SentImage | None:
        """Return the image that a file calls `name`, which may also be its URI, None when there is none.

        When no image has that name, the only image counts whose name ends in `name`, or in whose name `name` ends.
        Where there is none, names are compared without the endings of their files, which tools replace.
        """
        exact = self.images.get(name) or self._by_uri.get(name)
        if exact is not None:
            return exact
        plain = PurePosixPath(name.replace("\\", "/"))
        alike = [image for image in self._by_file.get(plain.name, ()) if _ends_in(PurePosixPath(image.name), plain)]
        stem = plain.with_name(plain.stem) if plain.name else plain
        alike = alike or [
            image
            for image in self._by_stem.get(plain.stem, ())
            if _ends_in(PurePosixPath(image.name).with_name(stem.name), stem)
        ]
        return alike[0] if len(alike) == 1 else None


def _ends_in(one: PurePosixPath, other: PurePosixPath) -> bool:
    """Whether the shorter of two paths is the end of the longer one."""
    ours, theirs = one.parts, other.parts
    common = min(len(ours), len(theirs))
    return ours[-common:] == theirs[-common:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of an import."""

    uri: str
    names: tuple[str, ...]
    """Paths below `uri`, sorted."""
    sent: Sent | None
    """The list of what was sent; None when it was not found."""

    def read(self, name: str) -> bytes:
        """Return the whole content of a file; raises `StorageError`, and `AnnotationError` for one that is packed."""
        content = read_bytes(self.where(name), max_bytes=MAX_FILE_BYTES)
        check_unpacked(content[:PACKED_BYTES], self.where(name))
        return content

    def where(self, name: str) -> str:
        """Return the URI of a file."""
        return join(self.uri, name)

    def named(self, *endings: str) -> Iterator[str]:
        """Yield the names with one of these endings, except the list of what was sent.

        Raises `AnnotationError` when no name has one of them.
        """
        found = [name for name in self.names if name.lower().endswith(endings) and PurePosixPath(name).name != SENT]
        if not found:
            raise AnnotationError(f"{self.uri}: expected files that end in {' or '.join(endings)}, found none")
        return iter(found)

    def needed_sent(self) -> Sent:
        """Return the list of what was sent, for formats whose files cannot hold a prompt_id.

        Raises `AnnotationError` when there is none.
        """
        if self.sent is None:
            raise AnnotationError(f"{self.uri}: expected {SENT} beside the files, or --sent EXPORT, found neither")
        return self.sent


def open_files(uri: str, sent_uri: str | None = None) -> Files:
    """List the file or folder at `uri`, and read the list of what was sent.

    `sent_uri` is the folder of the export, or its list; it is needed only when the list does not lie beside the files.
    Raises `AnnotationError` when there is nothing to import or the list is broken, and `StorageError`.
    """
    try:
        folder = is_folder(uri)
    except NotFoundError as error:
        raise AnnotationError(f"{uri}: no such file or folder to import") from error
    if folder:
        base, names = uri.rstrip("/"), tuple(sorted(name for name, _ in iter_versions(uri)))
    else:
        base, _, name = uri.rpartition("/")
        names = (name,)
    if not names:
        raise AnnotationError(f"{uri}: expected files to import, found an empty folder")
    return Files(uri=base, names=names, sent=_sent(base, sent_uri))


def _sent(base: str, sent_uri: str | None) -> Sent | None:
    if sent_uri is not None:
        return _read_sent(sent_uri if sent_uri.endswith(".json") else join(sent_uri, SENT))
    with suppress(NotFoundError):
        return _read_sent(join(base, SENT))
    return None


def _read_sent(uri: str) -> Sent:
    images = {}
    with open_stream(uri) as file:
        stream = JsonStream(file, uri)
        for key in stream.members():
            if key != "images":
                stream.skip()
                continue
            for entry in stream.elements():
                image = _sent_image(entry, uri)
                images[image.name] = image
    return Sent(images)


def _sent_image(entry: Any, uri: str) -> SentImage:
    try:
        name, (height, width), objects = entry["name"], entry["size"], tuple(entry["sent"])
        size = reviewed_size({"height": height, "width": width})
        known = all(isinstance(each["prompt_id"], str) and is_revision(each["revision"]) for each in objects)
    except (KeyError, TypeError, ValueError):
        size, known = None, False
    if size is None or not known or not isinstance(name, str):
        raise AnnotationError(f"{uri}: expected the list of an export, got {entry!r:.80}")
    image_uri = str(entry.get("image_uri", ""))
    return SentImage(name=name, size_hw=size, objects=objects, image_uri=image_uri, where=f"{uri}: image {name}")
