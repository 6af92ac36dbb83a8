"""From what an annotation file says to a `Prompt` of typed values.

The readers fill in a `SourceAnnotation` without judging it; `checked_prompt` makes a `Prompt` of it in every case, with
the reasons in `error` when it cannot be used: boxes and points of another type than a prompt holds are found here,
prompts that make no sense by the rules of `stable_sam.prompt_check`. Category, score and iscrowd are needed for no
mask: values that do not fit their column are kept in `attributes`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from stable_sam.errors import PromptError, shown
from stable_sam.prompt_check import check_prompt
from stable_sam.records import BoxXYXY, Prompt

MAX_ATTRIBUTE_CHARS = 200
"""Longer values (polygons, masks, embeddings) are the source's payload, not attributes of the prompt."""
MAX_ATTRIBUTES = 100
"""Of one prompt; those with longer names are left out like those with longer values."""
MAX_TEXT_BYTES = 500
"""Of an id or a category: rows are matched and grouped by them, and a name of megabytes would stand in every row."""
MAX_POINTS = 1000
"""Of one prompt: the decoder's memory grows with their number."""
MAX_ERROR_CHARS = 1000
WHOLE_NUMBER = re.compile(r"\s*-?[0-9]{1,19}\s*")
MAX_INT64 = 2**63 - 1
MAX_LABEL = 2**31 - 1
MAX_SIDE = 2**31 - 1
"""Of an image, in pixels: what a column of 32 bits holds, far above every image format."""

T = TypeVar("T")
Points = tuple[tuple[tuple[float, float], ...], tuple[int, ...]]
"""points_xy and point_labels."""
NO_POINTS: Points = ((), ())
Box = tuple[BoxXYXY | None, str | None]
"""box_xyxy, and the box as its source wrote it."""
NO_BOX: Box = (None, None)
_JSON = json.JSONEncoder(default=str).encode
_SORTED_JSON = json.JSONEncoder(sort_keys=True).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAnnotation:
    """One annotation as its source wrote it: identity and place are known, all other values are unchecked."""

    prompt_id: str
    where: str
    """File and record, for error messages."""
    image_id: str
    image_uri: str = ""
    size_hw: tuple[int, int] | None = None
    """Size of the upright image when the source knows it."""
    problem: str | None = None
    """What the reader itself found wrong, such as an image that is missing."""
    box_xyxy: Any = None
    box_xywh: Any = None
    points_xy: Any = None
    point_labels: Any = None
    annotation_id: str | None = None
    category_id: Any = None
    category: Any = None
    iscrowd: Any = None
    score: Any = None
    attributes: str | None = None


def checked_prompt(source: SourceAnnotation) -> Prompt:
    """The prompt, with `error` set to everything that is wrong with it; never raises.

    An unusable prompt keeps what box and points it has, for people to look at; only numbers that no table can hold are
    dropped.
    """
    problems = [source.problem] if source.problem else []

    def attempt(step: Callable[[], T], otherwise: T) -> T:
        try:
            return step()
        except PromptError as error:
            problems.append(str(error))
            return otherwise

    box, box_as_given = attempt(lambda: _box(source), NO_BOX)
    points, labels = attempt(lambda: _points(source), NO_POINTS)
    prompt = Prompt(
        prompt_id=source.prompt_id,
        image_id=source.image_id,
        image_uri=source.image_uri,
        image_size=source.size_hw,
        box_xyxy=box,
        points_xy=points,
        point_labels=labels,
        annotation_id=source.annotation_id,
        category_id=_integer(source.category_id),
        category=_text(source.category),
        iscrowd=bool(_flag(source.iscrowd)),
        score=_score(source.score),
        attributes=_with_unfit(source),
    )
    # That there is neither box nor points is no news when one of them, or the whole record, could not be read.
    if box is not None or points or labels or not problems:
        unusable = _presentable(prompt)
        prompt = attempt(lambda: check_prompt(prompt, source.size_hw, box_as_given=box_as_given), unusable)
    if not problems:
        return prompt
    return replace(prompt, error=shown(f"{source.where}: {'; '.join(problems)}", MAX_ERROR_CHARS))


def id_text(value: Any) -> str | None:
    """An id of the source as text: 7, 7.0 and "7" are one id. None when the value is not an id.

    Of a text above `MAX_TEXT_BYTES` the beginning and a hash stay: different ids stay different.
    """
    if isinstance(value, str):
        return _table_text(value) or None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return _table_text(str(value))


def image_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that an image entry states, None unless both are whole numbers that an image can have."""
    height, width = entry.get("height"), entry.get("width")
    if isinstance(height, int) and isinstance(width, int) and 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE:
        return height, width
    return None


def attributes_json(record: Mapping[str, Any], known: Container[str]) -> str | None:
    """The small values of a record that no field of a prompt holds, as a JSON object; None when there are none."""
    kept = {}
    for name, value in record.items():
        if name in known or value is None or len(name) > MAX_ATTRIBUTE_CHARS:
            continue
        if type(value) is bool or (type(value) is float and math.isfinite(value)):
            kept[name] = value
        else:
            text = _attribute_text(value)
            if len(text) <= MAX_ATTRIBUTE_CHARS:
                # JSON has no NaN and no infinity: these become text.
                kept[name] = value if type(value) in (int, str) else json.loads(text, parse_constant=str)
        if len(kept) == MAX_ATTRIBUTES:
            break
    return _SORTED_JSON(kept) if kept else None


def _attribute_text(value: Any) -> str:
    if isinstance(value, list | dict | str) and len(value) > MAX_ATTRIBUTE_CHARS:
        return " " * len(value)  # its JSON would be longer still
    try:
        return _JSON(value)
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        return " " * (MAX_ATTRIBUTE_CHARS + 1)


def _box(source: SourceAnnotation) -> Box:
    given_xyxy, given_xywh = _absent_if_empty(source.box_xyxy), _absent_if_empty(source.box_xywh)
    if given_xyxy is not None and given_xywh is not None:
        raise PromptError("expected box_xyxy or bbox_xywh, got both")
    if given_xywh is not None:
        x, y, width, height = _numbers(given_xywh, 4, "a box of 4 numbers (XYWH)")
        return (x, y, x + width, y + height), f"{[x, y, width, height]} (XYWH)"
    if given_xyxy is not None:
        x0, y0, x1, y1 = _numbers(given_xyxy, 4, "a box of 4 numbers (XYXY)")
        return (x0, y0, x1, y1), f"{[x0, y0, x1, y1]} (XYXY)"
    return NO_BOX


def _points(source: SourceAnnotation) -> Points:
    """Points without labels are all on the object."""
    given, labels = _absent_if_empty(source.points_xy), _absent_if_empty(source.point_labels)
    if given is not None and not isinstance(given, list | tuple):
        raise PromptError(f"expected a list of points [x, y], got {given!r:.80}")
    if given is not None and len(given) > MAX_POINTS:
        raise PromptError(f"expected at most {MAX_POINTS} points, got {len(given)}")
    points = []
    for point in given or ():
        x, y = _numbers(point, 2, "a point of 2 numbers (x, y)")
        points.append((x, y))
    if labels is None:
        return tuple(points), (1,) * len(points)
    if (
        not isinstance(labels, list | tuple)
        or len(labels) > MAX_POINTS
        or not all(_is_whole(label) for label in labels)
    ):
        raise PromptError(f"expected a list of whole numbers as point labels, got {labels!r:.80}")
    return tuple(points), tuple(int(label) for label in labels)


def _absent_if_empty(value: Any) -> Any:
    return None if isinstance(value, list | tuple) and not value else value


def _numbers(value: Any, count: int, expected: str) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or len(value) != count or not all(_is_number(item) for item in value):
        raise PromptError(f"expected {expected}, got {value!r:.80}")
    try:
        return tuple(float(item) for item in value)
    except OverflowError:
        raise PromptError(f"expected {expected}, got a number too large to hold") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _presentable(prompt: Prompt) -> Prompt:
    """The prompt without a box or points that are not finite, and without labels that are no 32-bit numbers."""
    box, points = prompt.box_xyxy, prompt.points_xy
    finite_box = box is not None and all(math.isfinite(value) for value in box)
    finite_points = all(math.isfinite(value) for point in points for value in point)
    small_labels = all(abs(label) <= MAX_LABEL for label in prompt.point_labels)
    return replace(
        prompt,
        box_xyxy=box if finite_box else None,
        points_xy=points if finite_points else (),
        point_labels=prompt.point_labels if finite_points and small_labels else (),
    )


def _with_unfit(source: SourceAnnotation) -> str | None:
    """The attributes, and with them what no column of its own can hold."""
    fitted = {
        "category_id": _integer(source.category_id),
        "category": _text(source.category),
        "iscrowd": _flag(source.iscrowd),
        "score": _score(source.score),
    }
    unfit = {name: getattr(source, name) for name, value in fitted.items() if value is None}
    added = attributes_json(unfit, known=())
    if added is None:
        return source.attributes
    return json.dumps(json.loads(added) | json.loads(source.attributes or "{}"), sort_keys=True)


def _integer(value: Any) -> int | None:
    """A whole number of 64 bits, also one written as 7.0 or "7"; None for anything else."""
    if isinstance(value, str) and WHOLE_NUMBER.fullmatch(value):
        value = int(value)
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    fits = isinstance(number, int) and not isinstance(number, bool) and abs(number) <= MAX_INT64
    return number if fits else None


def _text(value: Any) -> str | None:
    return _table_text(value) if isinstance(value, str) else None


def _table_text(text: str) -> str:
    """`text` as a table can hold it: half a surrogate pair, which JSON can smuggle in, is written out as an escape, and
    of a very long text the beginning and a hash stay."""
    valid = text.encode(errors="backslashreplace")
    if len(valid) <= MAX_TEXT_BYTES:
        return valid.decode()
    beginning = valid[:MAX_TEXT_BYTES].decode(errors="ignore")
    return f"{beginning[: MAX_TEXT_BYTES // 2]}…{hashlib.sha256(valid).hexdigest()}"


def _flag(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    number = _integer(value)
    return bool(number) if number in (0, 1) else None


def _score(value: Any) -> float | None:
    try:
        score = float(value) if _is_number(value) else math.nan
    except OverflowError:
        return None
    return score if math.isfinite(score) else None
