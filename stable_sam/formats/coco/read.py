"""COCO files: instances JSON and detection results JSON.

Instances: `bbox` is XYWH. As an extension, an annotation may carry `"points": [[x, y, label], ...]` (label 1 = on the
object, 0 = background) with or without `bbox`. `segmentation` is no weak prompt: only where there is neither `bbox` nor
`points`, the box around it is. `keypoints` are ignored unless they are asked for: then the visible ones are points on
the object.

LVIS is the same without file names: an image is the end of its `coco_url`.

Detection results: a list of `{"image_id", "bbox", "score", "category_id"}`. Which picture an id means is said by an
index (any COCO JSON with `images`), or by a `file_name` beside the id; otherwise image 42 is `000000000042.jpg` as in
COCO, or `42.*`, and image `cat` is `cat.*`.
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
    """Chunks of at most `rows` of the document's `annotations`; prompt_id is the annotation's id.

    An annotation without an id is named by its image and its place among those of the image, as detections are.

    The file is read twice, unless its images and categories come before its annotations: where COCO's own order puts
    the categories, nothing is known of them when the annotations pass. The first time is now, and raises
    `AnnotationError` for what is no JSON.
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
    """Chunks of at most `rows` detections; prompt_id is `{image_id}:{place among the detections of its image}`."""
    source = CocoFile(name=name, kind="detection", catalogue=catalogue, keypoints=keypoints)
    return _read(_detections(JsonStream(file, name)), source, rows)


def read_index(file: BinaryIO, *, name: str, images: ImageLookup) -> Catalogue:
    """The catalogue of any COCO file that has images; raises `AnnotationError`."""
    stream, catalogue = JsonStream(file, name), Catalogue(name, images)
    if stream.peek() == "{":
        _read_catalogue(stream, name, catalogue, need_annotations=False)
    if not len(catalogue):
        raise AnnotationError(f"{name}: expected a COCO JSON with a list of images as image index")
    return catalogue


def catalogue_of(image_index_uri: str | None, images: ImageLookup) -> AnyCatalogue:
    """The images of an index, or without one those that detections name themselves; raises `AnnotationError` and
    `StorageError`."""
    if image_index_uri is None:
        return CocoFileNames(images)
    with open_annotations(image_index_uri) as file:
        beside_index = ImageLookup(images.folder, image_index_uri, image_index_uri.rpartition("/")[2])
        return read_index(file, name=image_index_uri, images=beside_index)


def _read_catalogue(stream: JsonStream, name: str, catalogue: Catalogue, *, need_annotations: bool) -> int | None:
    """Fill the catalogue; returns where the annotations are, None when the stream has stopped before them."""
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
    """The elements of the list that begins here; then the rest of the document is looked at."""
    yield from stream.elements()
    for key in stream.more_members():
        if key in LISTS:
            raise _another(name, key)
        stream.skip()
    stream.end()


def _another(name: str, key: str) -> AnnotationError:
    return AnnotationError(f"{name}: expected one list under {key!r}, got another one")


def _detections(stream: JsonStream) -> Iterator[Any]:
    yield from stream.elements()
    stream.end()


def _read(records: Iterator[Any], source: CocoFile, rows: int) -> Iterator[Chunk]:
    places, position = PlaceCounter(len(source.catalogue), source.catalogue.number), 0
    while chunk := list(islice(records, rows)):
        yield record_chunk(chunk, source, places, position)
        position += len(chunk)
