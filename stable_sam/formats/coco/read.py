"""Reads COCO files: instances JSON and detection results JSON.

In instances, `bbox` is XYWH in pixels. As an extension, an annotation may have `"points": [[x, y, label], ...]` (label
1 = on the object, 0 = background) with or without `bbox`. `segmentation` is not a weak prompt: only an annotation with
neither `bbox` nor `points` gets the box around it. `keypoints` are ignored unless the config asks for them; then the
visible ones become points on the object.

LVIS instances have no `file_name`: the end of `coco_url` names the image.

Detection results are a list of `{"image_id", "bbox", "score", "category_id"}`. Which image an id means is said by an
image index (any COCO JSON with `images`), or by a `file_name` beside the id. Without both, image 42 is
`000000000042.jpg`, as COCO's own files are called, or `42.*`, and image `cat` is `cat.*`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

from stable_sam.errors import AnnotationError
from stable_sam.formats.coco.catalogue import AnyCatalogue, Catalogue, CocoFileNames
from stable_sam.formats.coco.records import CocoFile, record_chunk
from stable_sam.formats.columns.check import Chunk, PlaceCounter
from stable_sam.formats.image_lookup import ImageLookup
from stable_sam.formats.reading import open_annotations
from stable_sam.storage.json_stream import JsonStream

LISTS = ("images", "categories", "annotations")


def read_instances(
    file: BinaryIO, *, name: str, images: ImageLookup, rows: int, keypoints: bool = False
) -> Iterator[Chunk]:
    """Return chunks of at most `rows` of the document's `annotations`; prompt_id is the annotation's id.

    An annotation without an id gets the prompt_id of a detection: `{image_id}:{place among those of its image}`.

    The file is read twice unless its images and categories come before its annotations, because COCO's own order puts
    the categories at the end. The first reading happens in this call, which raises `AnnotationError` for a file that is
    not valid JSON or not COCO.
    """
    stream, catalogue = JsonStream(file, name), Catalogue(name, images)
    offset = _read_catalogue(stream, name, catalogue, need_annotations=True)
    source = CocoFile(name=name, kind="annotation", catalogue=catalogue, keypoints=keypoints)
    if offset is None:
        return _read(_annotations(stream, name), source, rows)
    return _read(JsonStream(file, name, offset).elements(), source, rows)


def read_detections(
    file: BinaryIO, *, name: str, catalogue: AnyCatalogue, rows: int, keypoints: bool = False
) -> Iterator[Chunk]:
    """Return chunks of at most `rows` detections; prompt_id is `{image_id}:{place among those of its image}`.

    Places count from 0.
    """
    source = CocoFile(name=name, kind="detection", catalogue=catalogue, keypoints=keypoints)
    return _read(_detections(JsonStream(file, name)), source, rows)


def read_index(file: BinaryIO, *, name: str, images: ImageLookup) -> Catalogue:
    """Read the catalogue of any COCO file that has images; raises `AnnotationError` when it has none."""
    stream, catalogue = JsonStream(file, name), Catalogue(name, images)
    if stream.peek() == "{":
        _read_catalogue(stream, name, catalogue, need_annotations=False)
    if not len(catalogue):
        raise AnnotationError(f"{name}: expected a COCO JSON with a list of images as image index, got none")
    return catalogue


def catalogue_of(image_index_uri: str | None, images: ImageLookup) -> AnyCatalogue:
    """Read the images of an index; without an index, use the names in the detections or COCO's own file names.

    Raises `AnnotationError` and `StorageError`.
    """
    if image_index_uri is None:
        return CocoFileNames(images)
    with open_annotations(image_index_uri) as file:
        beside_index = ImageLookup(images.folder, image_index_uri, image_index_uri.rpartition("/")[2])
        return read_index(file, name=image_index_uri, images=beside_index)


def _read_catalogue(stream: JsonStream, name: str, catalogue: Catalogue, *, need_annotations: bool) -> int | None:
    """Fill the catalogue and return the offset of the annotations, or None when the stream stands right before them.

    The offset is 0 when there are no annotations.
    """
    offset, seen = 0, set()
    for key in stream.members():
        if key not in LISTS:
            stream.skip()
            continue
        if key in seen:
            raise _another(name, key)
        seen.add(key)
        if stream.peek() != "[":
            raise AnnotationError(f"{name}: expected a list under {key!r}, got {type(stream.value()).__name__}")
        if key == "images":
            for position, entry in enumerate(stream.elements()):
                catalogue.add_image(position, entry)
        elif key == "categories":
            for entry in stream.elements():
                catalogue.add_category(entry)
        elif len(seen) == len(LISTS):
            return None
        else:
            offset = stream.offset
            stream.skip()
    stream.end()
    missing = sorted({"images", "annotations"} - seen) if need_annotations else []
    if missing:
        raise AnnotationError(f"{name}: unknown format: a COCO file needs images and annotations, got no {missing[0]}")
    return offset


def _annotations(stream: JsonStream, name: str) -> Iterator[Any]:
    """Yield the elements of the list that begins here, then check the rest of the document."""
    yield from stream.elements()
    for key in stream.more_members():
        if key in LISTS:
            raise _another(name, key)
        stream.skip()
    stream.end()


def _another(name: str, key: str) -> AnnotationError:
    return AnnotationError(f"{name}: expected one list under {key!r}, got two")


def _detections(stream: JsonStream) -> Iterator[Any]:
    yield from stream.elements()
    stream.end()


def _read(records: Iterator[Any], source: CocoFile, rows: int) -> Iterator[Chunk]:
    places, position = PlaceCounter(len(source.catalogue), source.catalogue.number), 0
    while chunk := list(islice(records, rows)):
        yield record_chunk(chunk, source, places, position)
        position += len(chunk)
