"""Reads sources with a file for each image: many small files, by several threads, in the order of their names."""

from __future__ import annotations

from collections.abc import Iterator

from stable_sam.errors import AnnotationError, NotFoundError
from stable_sam.formats.reading import (
    PACKED_BYTES,
    AnnotationFile,
    AnnotationSource,
    Context,
    SmallFile,
    check_unpacked,
    unreadable,
)
from stable_sam.formats.registry import Reader
from stable_sam.formats.source_annotation import SourceAnnotation
from stable_sam.storage import files as storage
from stable_sam.storage.parallel import ahead

MAX_BYTES = 2**26
"""Largest size of one file: LabelMe may embed the image itself in it."""
SAMPLE_FILES = 16
"""When so many files at the beginning cannot be read, the source is taken to be of another format."""


def read_per_image(source: AnnotationSource, reader: Reader, context: Context) -> Iterator[SourceAnnotation]:
    """Yield the annotations of all files of a source.

    A file that cannot be read becomes one annotation with a problem. Raises `AnnotationError` when the only file or
    each of the first `SAMPLE_FILES` cannot be read, and `StorageError`.
    """
    assert reader.read_small is not None
    read_small = reader.read_small
    context = context.with_class_names(source.folder_uri, reader.class_names)

    def read(file: AnnotationFile) -> list[SourceAnnotation] | AnnotationError:
        try:
            return read_small(_content(file), context)
        except AnnotationError as error:
            return error

    known = False
    bad: list[tuple[AnnotationFile, AnnotationError]] = []
    for file, found in zip(source.files, ahead(read, source.files), strict=True):
        if isinstance(found, AnnotationError):
            bad.append((file, found))
            if not known and len(bad) == min(SAMPLE_FILES, len(source.names)):
                raise bad[0][1]
        known = known or not isinstance(found, AnnotationError)
        if known:
            yield from (unreadable(*one) for one in bad)
            bad.clear()
        if not isinstance(found, AnnotationError):
            yield from found


def _content(file: AnnotationFile) -> SmallFile:
    try:
        content = storage.read_head(file.uri, MAX_BYTES + 1)
    except NotFoundError:
        raise AnnotationError(f"{file.uri}: no such annotation file") from None
    if len(content) > MAX_BYTES:
        raise AnnotationError(f"{file.uri}: expected at most {MAX_BYTES} bytes, got a larger file")
    check_unpacked(content[:PACKED_BYTES], file.uri)
    return SmallFile(file=file, content=content)
