"""Sources with a file for each image: many small files, read by several threads, in the order of their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stable_sam.data import storage
from stable_sam.data.ahead import ahead
from stable_sam.data.annotation_files import AnnotationFile, Source
from stable_sam.data.source_annotation import SourceAnnotation
from stable_sam.errors import AnnotationError, NotFoundError
from stable_sam.formats.class_names import YOLO_FILES, read_class_names
from stable_sam.formats.read_labelme import read_labelme
from stable_sam.formats.read_voc import read_voc
from stable_sam.formats.read_yolo import read_yolo
from stable_sam.formats.reading import Context, SmallFile, unreadable

MAX_BYTES = 2**26
"""Of one file: LabelMe puts the picture itself into it."""
SAMPLE_FILES = 16
"""When the first ones cannot be read, the source is of another format."""

Reader = Callable[[SmallFile, Context], list[SourceAnnotation]]


def read_per_image(source: Source, file_format: str, context: Context) -> Iterator[SourceAnnotation]:
    """The annotations of all files of a source.

    A file that cannot be read is one annotation that says so. Raises `AnnotationError` when that is so of the only file
    or of the first `SAMPLE_FILES`, and `StorageError`.
    """
    reader = _reader(source, file_format, context)

    def read(file: AnnotationFile) -> list[SourceAnnotation] | AnnotationError:
        try:
            return reader(_content(file), context)
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


def _reader(source: Source, file_format: str, context: Context) -> Reader:
    if file_format == "voc":
        return read_voc
    if file_format == "labelme":
        return read_labelme
    names = read_class_names(source.folder_uri, context.class_names_uri, YOLO_FILES)
    return lambda file, context: read_yolo(file, context, names)


def _content(file: AnnotationFile) -> SmallFile:
    try:
        content = storage.read_head(file.uri, MAX_BYTES + 1)
    except NotFoundError:
        raise AnnotationError(f"{file.uri}: no such annotation file") from None
    if len(content) > MAX_BYTES:
        raise AnnotationError(f"{file.uri}: expected at most {MAX_BYTES} bytes, got a larger file")
    return SmallFile(file=file, content=content)
