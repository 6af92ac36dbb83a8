"""Registers every format of other tools: how its files are recognised, read, written, and read back after a review.

A new format has its readers and writers in a file or a folder of its own, their entries here, its name in
`stable_sam.records.AnnotationFormat` when it can be read, and a section in docs/annotations.md or docs/review.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from stable_sam.formats.class_names import OPEN_IMAGES_FILES, YOLO_FILES
from stable_sam.formats.coco.read import catalogue_of, read_detections, read_instances
from stable_sam.formats.coco.review import review_coco
from stable_sam.formats.coco.write import LAYOUTS, write_instances, write_results
from stable_sam.formats.columns.chunks import PromptChunk, record_chunks
from stable_sam.formats.cvat.read import read_cvat
from stable_sam.formats.cvat.review import review_cvat
from stable_sam.formats.cvat.write import write_cvat
from stable_sam.formats.export_records import Layout, OpenWriter
from stable_sam.formats.fiftyone import write_fiftyone
from stable_sam.formats.hugging_face import write_hugging_face
from stable_sam.formats.labelme.read import read_labelme
from stable_sam.formats.labelme.review import review_labelme
from stable_sam.formats.labelme.write import write_labelme
from stable_sam.formats.labelstudio.read import read_labelstudio
from stable_sam.formats.labelstudio.review import review_labelstudio
from stable_sam.formats.labelstudio.write import write_labelstudio
from stable_sam.formats.openimages import read_openimages
from stable_sam.formats.png.review import review_png
from stable_sam.formats.png.write import write_png
from stable_sam.formats.prompt_table.read import read_prompt_table
from stable_sam.formats.reading import AnnotationFile, Context, SmallFile
from stable_sam.formats.review_files import Files
from stable_sam.formats.review_records import ReviewedImage
from stable_sam.formats.source_annotation import SourceAnnotation
from stable_sam.formats.voc import read_voc
from stable_sam.formats.yolo.read import read_yolo
from stable_sam.formats.yolo.review import review_yolo
from stable_sam.formats.yolo.write import write_yolo


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How the weak annotations of one format are found and read: exactly one of `read` and `read_small` is given."""

    endings: tuple[str, ...]
    """Endings of the format's files, in lower case, by which they are chosen from a folder."""
    read: Callable[[BinaryIO, AnnotationFile, Context], Iterator[PromptChunk]] | None = None
    """Yields the prompts of an open annotation file chunk by chunk; raises `AnnotationError`."""
    read_small: Callable[[SmallFile, Context], list[SourceAnnotation]] | None = None
    """Returns the annotations of a file that holds those of one image; raises `AnnotationError`."""
    class_names: tuple[str, ...] = ()
    """Names of files that may hold the class names; the first that exists beside or above the annotations is read."""
    xml_root: str | None = None
    """The root element by which XML files of this format are recognised."""
    json_keys: tuple[tuple[str, str | None], ...] = ()
    """Keys by which a JSON object of this format is recognised, each with the character that its value begins with, or
    with None for a value of any kind."""


def _instances(stream: BinaryIO, file: AnnotationFile, context: Context) -> Iterator[PromptChunk]:
    images = context.images_of(file)
    return read_instances(stream, name=file.uri, images=images, rows=context.rows, keypoints=context.keypoints)


def _detections(stream: BinaryIO, file: AnnotationFile, context: Context) -> Iterator[PromptChunk]:
    catalogue = catalogue_of(context.image_index_uri, context.images_of(file))
    return read_detections(stream, name=file.uri, catalogue=catalogue, rows=context.rows, keypoints=context.keypoints)


def _table(stream: BinaryIO, file: AnnotationFile, context: Context) -> Iterator[PromptChunk]:
    return read_prompt_table(stream, name=file.uri, images=context.images_of(file), rows=context.rows)


READERS: Mapping[str, Reader] = {
    "coco": Reader(endings=("json",), read=_instances, json_keys=(("images", None),)),
    "lvis": Reader(endings=("json",), read=_instances),
    "detections": Reader(endings=("json",), read=_detections),
    "table": Reader(
        endings=("jsonl", "ndjson", "parquet"),
        read=_table,
        json_keys=(("image", None),),
    ),
    "voc": Reader(endings=("xml",), read_small=read_voc, xml_root="annotation"),
    "yolo": Reader(endings=("txt",), read_small=read_yolo, class_names=YOLO_FILES),
    "labelme": Reader(endings=("json",), read_small=read_labelme, json_keys=(("shapes", "["),)),
    "labelstudio": Reader(
        endings=("json",),
        read=lambda stream, file, context: record_chunks(read_labelstudio(stream, file, context), context.few_rows),
        json_keys=(("data", "{"), ("result", "[")),
    ),
    "cvat": Reader(
        endings=("xml",),
        read=lambda stream, file, context: record_chunks(read_cvat(stream, file, context), context.rows),
        xml_root="annotations",
    ),
    "openimages": Reader(
        endings=("csv",),
        read=lambda stream, file, context: record_chunks(read_openimages(stream, file, context), context.few_rows),
        class_names=OPEN_IMAGES_FILES,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """How masks are exported in one format, with the format's defaults for the options of an export."""

    write: OpenWriter
    copies: bool = False
    """Whether images are copied by default, because the format's tools look for them beside the labels."""
    polygons: bool = False
    """Whether masks are written as polygons by default."""
    names_by_stem: bool = False
    """Whether label files are named after the images without their endings."""
    splits: bool = False
    """Whether the format can divide the images for training."""
    embeds: bool = False
    """Whether the format's files hold the images themselves, where images are copied."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """Layouts that may be chosen instead of the usual one."""


WRITERS: Mapping[str, Writer] = {
    "coco": Writer(write=write_instances, copies=True, layouts=LAYOUTS),
    "coco-results": Writer(write=write_results),
    "yolo": Writer(write=write_yolo, copies=True, names_by_stem=True, splits=True),
    "labelstudio": Writer(write=write_labelstudio),
    "cvat": Writer(write=write_cvat),
    "labelme": Writer(write=write_labelme, copies=True, polygons=True, names_by_stem=True),
    "png": Writer(write=write_png),
    "fiftyone": Writer(write=write_fiftyone),
    "parquet": Writer(write=write_hugging_face, copies=True, embeds=True),  # a Hugging Face dataset
}

REVIEW_READERS: Mapping[str, Callable[[Files], Iterator[ReviewedImage]]] = {
    "coco": review_coco,
    "labelstudio": review_labelstudio,
    "cvat": review_cvat,
    "labelme": review_labelme,
    "yolo": review_yolo,
    "png": review_png,
}
"""By format, the function that reads exported files after people reviewed them; raises `AnnotationError`."""
