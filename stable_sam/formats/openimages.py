"""Reads Open Images boxes (CSV): a row is a box, `XMin, XMax, YMin, YMax` as fractions of the image's width and height.

Files of segments (`BoxXMin` ... and `BoxID`) are read for their boxes. The header of each image is read for its size,
which turns fractions into pixels. `IsGroupOf` becomes iscrowd; it and the other `Is...` columns become attributes,
except where their value is -1 (nobody judged it). The category is the class description of `LabelName` when a file of
class descriptions is found, else the label itself.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, BinaryIO

from stable_sam.errors import AnnotationError, one_line
from stable_sam.formats.columns.check import PlaceCounter
from stable_sam.formats.image_lookup import FoundImage, ImageLookup
from stable_sam.formats.reading import AnnotationFile, Context, in_order, scaled
from stable_sam.formats.source_annotation import SourceAnnotation, attributes_json
from stable_sam.formats.xml_elements import number
from stable_sam.storage.parallel import ahead

BOXES = ("XMin", "YMin", "XMax", "YMax")
SEGMENTS = tuple(f"Box{name}" for name in BOXES)
OWN_COLUMNS = frozenset({"ImageID", "Confidence", *BOXES, *SEGMENTS})
ROWS = 500
MAX_LINE = 2**20
TOO_MANY = "values without a column"


def read_openimages(stream: BinaryIO, file: AnnotationFile, context: Context) -> Iterator[SourceAnnotation]:
    """Yield one annotation for each row; raises `AnnotationError` for a file that is not such a CSV."""
    rows, lookup = _rows(stream, file.uri), context.images_of(file)
    places = PlaceCounter(len(context.folder), context.folder.number)
    while chunk := list(islice(rows, ROWS)):
        images = {image_id: _image(image_id, lookup) for image_id in dict.fromkeys(row["ImageID"] for _, row in chunk)}
        uris = list(dict.fromkeys(image.uri for image in images.values() if image.uri))
        sizes = dict(zip(uris, ahead(context.sizes.of, uris), strict=True))
        for line, row in chunk:
            image = images[row["ImageID"]]
            size, unknown = sizes.get(image.uri, (None, None))
            own_id = row.get("BoxID") or places.next(image.image_id)
            fractions = in_order([number(row[column]) for column in (BOXES if "XMin" in row else SEGMENTS)])
            yield SourceAnnotation(
                prompt_id=f"{row['ImageID'] or f'line-{line}'}:{own_id}",
                where=f"{file.uri}: line {line}",
                image_id=image.image_id,
                image_uri=image.uri,
                size_hw=size,
                problem=image.problem or unknown or _problem(fractions),
                box_xyxy=scaled(fractions, size[1], size[0]) if size else None,
                category=context.class_names.names.get(row.get("LabelName") or "", row.get("LabelName")),
                iscrowd=row.get("IsGroupOf") == "1",
                score=number(row.get("Confidence")),
                attributes=attributes_json(_attributes(row), OWN_COLUMNS),
            )


def _rows(file: BinaryIO, uri: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the fields of each row."""
    reader = csv.DictReader(_lines(file, uri), restval="", restkey=TOO_MANY)
    try:
        columns = reader.fieldnames or ()
        if not ("ImageID" in columns and any(set(names) <= set(columns) for names in (BOXES, SEGMENTS))):
            raise AnnotationError(
                f"{uri}: expected Open Images boxes with the columns ImageID, {', '.join(BOXES)}, "
                f"got {', '.join(columns) or 'an empty file':.200}"
            )
        for row in reader:
            row.pop(TOO_MANY, None)
            yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise AnnotationError(f"{uri}: line {reader.line_num}: not valid CSV: {one_line(error)}") from None


def _lines(file: BinaryIO, uri: str) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise AnnotationError(f"{uri}: line {number}: expected a line below {MAX_LINE} bytes, got a longer one")
        yield line.decode("utf-8-sig" if number == 1 else "utf-8")


def _attributes(row: Mapping[str, str]) -> dict[str, Any]:
    flags = {name: value == "1" for name, value in row.items() if name.startswith("Is") and value in ("0", "1")}
    others = {name: value for name, value in row.items() if not name.startswith("Is") and value}
    return others | flags


def _problem(fractions: list[Any]) -> str | None:
    good = all(isinstance(fraction, float) and -0.5 <= fraction <= 1.5 for fraction in fractions)
    return None if good else f"expected fractions of the image's size, from 0 to 1, got {fractions!r:.80}"


def _image(image_id: str, lookup: ImageLookup) -> FoundImage:
    return lookup.find(image_id, missing=f"no image file {image_id}.* is below {lookup.folder.uri}")
