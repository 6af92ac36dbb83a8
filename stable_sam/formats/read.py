"""Reads weak annotations of any supported format as `Prompt` records; docs/annotations.md describes each format.

`stable_sam.formats.sources` finds the files, `stable_sam.formats.recognise` recognises their format unless the config
names it, and `stable_sam.formats.registry` has the reader of each format.

Every annotation becomes exactly one `Prompt`. A prompt that cannot be used says why in `error`. A file that cannot be
read at all raises `AnnotationError`, except in formats with a file for each image: there it becomes one prompt with an
error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from typing import BinaryIO

import pyarrow as pa

from stable_sam.config import SourceConfig
from stable_sam.errors import AnnotationError, ConfigError
from stable_sam.formats.columns.chunks import NamedChunk, PromptChunk, record_chunks
from stable_sam.formats.image_folder import ImageFolder
from stable_sam.formats.per_image import read_per_image
from stable_sam.formats.reading import (
    ROWS_ONE_BY_ONE,
    AnnotationFile,
    AnnotationSource,
    Context,
    Sizes,
    open_annotations,
)
from stable_sam.formats.recognise import WrongExport, recognise
from stable_sam.formats.registry import READERS, Reader
from stable_sam.formats.sources import find_sources
from stable_sam.formats.stored_frame import upright
from stable_sam.records import Prompt

BATCH_ROWS = 10_000
"""Prompts in one batch, which takes some megabytes."""
SAMPLE_FILES = 16
"""Number of files of a folder that are tried until the format of one is recognised."""
AUTO = SourceConfig()


def read_prompt_batches(
    annotations_uri: str, *, images_uri: str, image_index_uri: str | None = None, source: SourceConfig = AUTO
) -> Iterator[pa.RecordBatch]:
    """Yield the prompts of `read_prompts` as record batches of PROMPTS_SCHEMA, at most `BATCH_ROWS` rows each.

    Plain boxes are read and checked column by column, everything else row by row. The call and the iterator raise the
    errors that those of `read_prompts` raise.
    """
    return _batches(_open(annotations_uri, images_uri, image_index_uri, BATCH_ROWS, source))


def read_prompts(
    annotations_uri: str, *, images_uri: str, image_index_uri: str | None = None, source: SourceConfig = AUTO
) -> Iterator[Prompt]:
    """Yield the prompts of annotation files, in the order of the files.

    `annotations_uri` is a file, a folder, a pattern, or several of these with commas between (see
    `stable_sam.formats.sources`). With several, each source's name is put before the ids of its prompts and into their
    attributes.
    `images_uri` is the folder that image names in the annotations are relative to; an image outside it is refused.
    `image_index_uri` (for detection results only) is a COCO JSON whose `images` say which file an image_id means.
    `source` has the format and the other choices of the config.

    Files of any length are read as a stream; only the names of the folder's images and the `images` of a COCO file are
    kept in memory. The caller has to check whether an id appears twice.

    The call itself raises `AnnotationError` when a source does not exist, when a single file that was named is of no
    known format or is COCO without valid JSON, and `StorageError` when such a file or the image folder cannot be read.
    The iterator raises `AnnotationError` for a line, detection or row group that cannot be parsed, and at its end when
    the sources hold no annotation at all.
    """
    return _prompts(_open(annotations_uri, images_uri, image_index_uri, ROWS_ONE_BY_ONE, source))


def read_places(
    prompt_id: str,
    annotations_uri: str,
    *,
    images_uri: str,
    image_index_uri: str | None = None,
    source: SourceConfig = AUTO,
) -> Iterator[str]:
    """Yield the file and the record of each prompt that `read_prompts` yields with this id, for messages.

    The call and the iterator raise the errors that those of `read_prompts` raise.
    """
    for chunk in _open(annotations_uri, images_uri, image_index_uri, BATCH_ROWS, source):
        ids = chunk.batch()["prompt_id"].to_pylist()
        yield from (chunk.where(row) for row, found in enumerate(ids) if found == prompt_id)


def _batches(chunks: Iterator[PromptChunk]) -> Iterator[pa.RecordBatch]:
    return (chunk.batch() for chunk in chunks)


def _prompts(chunks: Iterator[PromptChunk]) -> Iterator[Prompt]:
    return (prompt for chunk in chunks for prompt in chunk.prompts())


def _open(
    annotations: str, images_uri: str, image_index_uri: str | None, rows: int, config: SourceConfig
) -> Iterator[PromptChunk]:
    sources = find_sources(annotations, config.format, follow_links=config.follow_links)
    folder = ImageFolder(images_uri, follow_links=config.follow_links)
    context = Context(
        folder=folder,
        rows=rows,
        keypoints=config.keypoints,
        class_names_uri=config.class_names_uri,
        image_index_uri=image_index_uri,
        sizes=Sizes(config.frame),
    )
    reader = _Reader(context, config.format)
    chunks = [upright(reader.source(source), context.sizes) for source in sources]
    if image_index_uri is not None and "detections" not in reader.formats:
        raise AnnotationError(
            f"{image_index_uri}: an image index is for COCO detection results only, and {annotations} has none"
        )
    return _some(chunks, annotations)


def _some(sources: list[Iterator[PromptChunk]], annotations: str) -> Iterator[PromptChunk]:
    found = False
    for chunks in sources:
        for chunk in chunks:
            found = True
            yield chunk
    if not found:
        raise AnnotationError(f"{annotations}: expected at least one annotation, got none")


class _Reader:
    """Opens sources and collects the formats that they have in `formats`."""

    def __init__(self, context: Context, configured: str) -> None:
        self._context, self._configured = context, configured
        self.formats: set[str] = set()

    def source(self, source: AnnotationSource) -> Iterator[PromptChunk]:
        """Return the chunks of one source."""
        is_small = self._configured != "auto" and READERS[self._configured].read_small is not None
        if source.alone and not is_small:
            return self._file(source, next(source.files), source.label)
        file_format = self._configured if self._configured != "auto" else _sampled(source)
        self.formats.add(file_format)
        if READERS[file_format].read_small is not None:
            return self._per_image(source, READERS[file_format])
        # Each file of a folder is a source of its own.
        below = f"{source.label}/" if source.label else ""
        return (chunk for file in source.files for chunk in self._file(source, file, below + file.stem))

    def _per_image(self, source: AnnotationSource, reader: Reader) -> Iterator[PromptChunk]:
        annotations = read_per_image(source, reader, self._context)
        return _named(record_chunks(annotations, self._context.few_rows), source.label)

    def _file(self, source: AnnotationSource, file: AnnotationFile, name: str | None) -> Iterator[PromptChunk]:
        with ExitStack() as opened:
            stream = opened.enter_context(open_annotations(file.uri))
            file_format = self._format(stream, file.uri)
            self.formats.add(file_format)
            reader = READERS[file_format]
            if reader.read is None:
                if source.alone:
                    return self._per_image(source, reader)
                raise AnnotationError(
                    f"{file.uri}: expected a file of the same format as those before it, got one of {file_format}"
                )
            stream.seek(0)
            context = self._context.with_class_names(file.uri.rpartition("/")[0], reader.class_names)
            chunks = reader.read(stream, file, context)
            # The file stays open when this function returns, and is closed when the chunks end.
            return _closing(_named(chunks, name), opened.pop_all())

    def _format(self, stream: BinaryIO, uri: str) -> str:
        if self._configured == "auto":
            return recognise(stream, uri)
        try:
            found = recognise(stream, uri)
        except WrongExport:
            raise
        except AnnotationError:  # what cannot be told may still be read
            return self._configured
        else:
            if found != {"lvis": "coco"}.get(self._configured, self._configured):
                raise ConfigError(f"{uri}: expected format {self._configured}, got {found}")
        return self._configured


def _sampled(source: AnnotationSource) -> str:
    """Return the format of the first file that can be recognised; raises the first file's error when none can."""
    first: AnnotationError | None = None
    for file in islice(source.files, SAMPLE_FILES):
        try:
            with open_annotations(file.uri) as opened:
                return recognise(opened, file.uri)
        except AnnotationError as error:
            first = first or error
    raise first or AnnotationError(f"{source.entry}: no such annotation file")


def _named(chunks: Iterator[PromptChunk], name: str | None) -> Iterator[PromptChunk]:
    return chunks if name is None else (NamedChunk(chunk, name) for chunk in chunks)


def _closing(chunks: Iterator[PromptChunk], opened: ExitStack) -> Iterator[PromptChunk]:
    with opened:
        yield from chunks
