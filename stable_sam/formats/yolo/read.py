"""Reads YOLO labels: a text file for each image, a line for each object, in fractions of the image's width and height.

    class cx cy w h [confidence]                 box (5 or 6 values)
    class x1 y1 x2 y2 x3 y3 ... [confidence]     polygon, or the corners of a rotated box (7 values and more)
    class cx cy w h x y [visible] ...            pose, when data.yaml has a kpt_shape

A line's box is the one that it states, or the box around its polygon. The header of each image that has labels is read
for its size, which turns fractions into pixels. The image has the path of its label file, with another ending, and
with `images` for `labels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stable_sam.errors import AnnotationError
from stable_sam.formats.class_names import ClassNames
from stable_sam.formats.image_lookup import FoundImage
from stable_sam.formats.reading import Context, SmallFile, bounds, scaled
from stable_sam.formats.source_annotation import SourceAnnotation
from stable_sam.formats.xml_elements import number

NORMALISED = (-0.5, 1.5)
"""Least and largest fraction that is accepted, because detectors and people draw a little over the border."""
LISTS = frozenset({"classes", "labels", "labelmap", "train", "val", "valid", "test", "trainval", "requirements"})
"""Names of other text files that lie among the labels; a file of such a name is read only when it has an image."""
VISIBLE = 2


def read_yolo(file: SmallFile, context: Context) -> list[SourceAnnotation]:
    """Return one annotation for each line that is not blank; raises `AnnotationError` for a file that is not text."""
    image = _image(file, context)
    if image.problem is not None and file.stem.rpartition("/")[2].lower() in LISTS:
        return []
    try:
        lines = file.content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file.uri}: expected YOLO labels in text, got {error.reason}") from None
    rows = [(place, line.split()) for place, line in enumerate(lines) if line.strip()]
    size, unknown = context.sizes.of(image.uri) if rows and image.uri else (None, None)
    return [
        SourceAnnotation(
            prompt_id=f"{file.stem}:{place}",
            where=f"{file.uri}: line {line + 1}",
            image_id=image.image_id,
            image_uri=image.uri,
            size_hw=size,
            **_fields(
                values, context.class_names, size, "; ".join(filter(None, (image.problem, unknown))), context.keypoints
            ),
        )
        for place, (line, values) in enumerate(rows)
    ]


def _fields(
    texts: Sequence[str], names: ClassNames, size: tuple[int, int] | None, problem: str, keypoints: bool
) -> dict[str, Any]:
    label, values = number(texts[0]), [number(text) for text in texts[1:]]
    fields: dict[str, Any] = {"category_id": label}
    if isinstance(label, float) and label.is_integer():
        fields["category"] = names.names.get(str(int(label)))
    pose = names.keypoints * names.keypoint_values
    fractions: list[Any] | None = None
    points: list[list[Any]] = []
    if not all(isinstance(value, float) for value in values):
        problem = problem or f"expected a class and numbers, got {' '.join(texts)!r:.80}"
    elif pose and len(values) in (4 + pose, 5 + pose):
        fractions = values[:4]
        points = list(_visible(values[4 : 4 + pose], names.keypoint_values)) if keypoints else []
        fields["score"] = values[-1] if len(values) > 4 + pose else None
    elif len(values) in (4, 5):
        fractions, fields["score"] = values[:4], values[4] if len(values) == 5 else None
    elif len(values) >= 6:
        corners = values[: len(values) // 2 * 2]
        fields["score"] = values[-1] if len(values) > len(corners) else None
        around = bounds([corners[at : at + 2] for at in range(0, len(corners), 2)]) or []
        fractions = _centred(around)
    else:
        problem = problem or f"expected a class and 4 numbers or more, got {' '.join(texts)!r:.80}"
    if fractions is not None and not all(NORMALISED[0] <= value <= NORMALISED[1] for value in fractions):
        problem = problem or f"expected fractions of the image's size, from 0 to 1, got {' '.join(texts)!r:.80}"
        fractions, points = None, []
    if fractions is not None and size is not None:
        height, width = size
        cx, cy, w, h = scaled(fractions, width, height)
        fields["box_xyxy"] = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        fields["points_xy"] = [scaled(point, width, height) for point in points]
    return fields | {"problem": problem or None}


def _centred(box: Sequence[Any]) -> list[Any]:
    x0, y0, x1, y1 = box
    return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]


def _visible(values: Sequence[Any], each: int) -> Iterator[list[Any]]:
    for at in range(0, len(values), each):
        point = values[at : at + each]
        visible = point[2] == VISIBLE if each == 3 else any(point)
        if visible:
            yield list(point[:2])


def _image(file: SmallFile, context: Context) -> FoundImage:
    missing = f"no image file {file.stem}.* is below {context.folder.uri}"
    return context.images_of(file.file).find(file.stem, missing=missing)
