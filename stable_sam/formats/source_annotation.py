"""Turns what an annotation file says into a `Prompt` of typed values.

The readers fill in a `SourceAnnotation` without checking it. `checked_prompt` makes a `Prompt` of it in every case and
writes into `error` why the prompt cannot be used: this module finds boxes and points of a wrong type, the rules of
`stable_sam.prompt_check` find prompts that make no sense. No mask depends on category, score and iscrowd, so their
values are never an error: a value that does not fit its column goes into `attributes`.
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
"""Longest name and longest value of an attribute. Longer values (polygons, masks, embeddings) are left out, because
they are the source's payload and not attributes of the prompt."""
MAX_ATTRIBUTES = 100
"""Largest number of attributes of one prompt; further ones are left out."""
MAX_TEXT_BYTES = 500
"""Longest id or category, in UTF-8. Rows are matched and grouped by these, and a long one would be in every row."""
MAX_POINTS = 1000
"""Largest number of points of one prompt, because the decoder's memory grows with it."""
MAX_ERROR_CHARS = 1000
WHOLE_NUMBER = re.compile(r"\s*-?[0-9]{1,19}\s*")
MAX_INT64 = 2**63 - 1
MAX_LABEL = 2**31 - 1
MAX_SIDE = 2**31 - 1
"""Longest side of an image in pixels: a column of 32 bits holds no more, and no image format reaches it."""

T = TypeVar("T")
Points = tuple[tuple[tuple[float, float], ...], tuple[int, ...]]
"""The points_xy and point_labels of a prompt."""
NO_POINTS: Points = ((), ())
Box = tuple[BoxXYXY | None, str | None]
"""The box_xyxy of a prompt, and the box as its source wrote it, for messages."""
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
    """Height and width of the upright image in pixels; None when the source does not state them."""
    problem: str | None = None
    """What the reader itself found wrong, such as a missing image; None when it found nothing."""
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
    """Return the prompt, with everything that is wrong with it in `error`; never raises.

    A prompt that cannot be used keeps its box and points for people to look at, without numbers that no table can hold.
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
    # When the box, the points or the whole record could not be read, "no box and no points" would only repeat it.
    if box is not None or points or labels or not problems:
        unusable = _presentable(prompt)
        prompt = attempt(lambda: check_prompt(prompt, source.size_hw, box_as_given=box_as_given), unusable)
    if not problems:
        return prompt
    cause = "; ".join(problems)
    return replace(prompt, error=shown(f"{source.where}: {cause}", MAX_ERROR_CHARS), cause=shown(cause))


def id_text(value: Any) -> str | None:
    """Return an id of the source as text, None when the value is not an id. 7, 7.0 and "7" are one id.

    A text above `MAX_TEXT_BYTES` is cut and ends in its hash, so that different ids stay different.
    """
    if isinstance(value, str):
        return _table_text(value) or None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return _table_text(str(value))


def image_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) in pixels from an image's entry, None unless both are whole numbers in 1 to `MAX_SIDE`."""
    height, width = entry.get("height"), entry.get("width")
    if isinstance(height, int) and isinstance(width, int) and 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE:
        return height, width
    return None


def attributes_json(record: Mapping[str, Any], known: Container[str]) -> str | None:
    """Return a record's small values as a JSON object in text, without the fields `known`; None when there are none."""
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
        return " " * len(value)  # too long already, and its JSON would be longer still
    try:
        return _JSON(value)
    except (ValueError, RecursionError):  # numbers of thousands of digits, or lists of thousands of levels
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
    """Return points and labels; points without labels are all on the object (label 1)."""
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
    """Return the prompt without a box or points that are not finite, and without labels that do not fit 32 bits."""
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
    """Return the attributes together with category_id, category, iscrowd and score that do not fit their columns."""
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
    """Return a whole number of 64 bits, which may be written as 7.0 or "7"; None for anything else."""
    if isinstance(value, str) and WHOLE_NUMBER.fullmatch(value):
        value = int(value)
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    fits = isinstance(number, int) and not isinstance(number, bool) and abs(number) <= MAX_INT64
    return number if fits else None


def _text(value: Any) -> str | None:
    return _table_text(value) if isinstance(value, str) else None


def _table_text(text: str) -> str:
    """Return `text` as a table can hold it.

    Half a surrogate pair, which JSON may hold, becomes an escape. A text above `MAX_TEXT_BYTES` is cut and ends in its
    hash.
    """
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
