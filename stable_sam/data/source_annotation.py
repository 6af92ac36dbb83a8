"""From what an annotation file says to a `Prompt` of typed values.

The readers fill in a `SourceAnnotation` without judging it; `checked_prompt` makes a `Prompt` of it in every case, with
the reasons in `error` when it cannot be used: values of another type than a prompt holds are found here, prompts that
make no sense by the rules of `stable_sam.prompt_check`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from stable_sam.errors import PromptError
from stable_sam.prompt_check import check_prompt
from stable_sam.records import BoxXYXY, Prompt

MAX_ATTRIBUTE_CHARS = 200
"""Longer values (polygons, masks, embeddings) are the source's payload, not attributes of the prompt."""
MAX_INT64 = 2**63 - 1
MAX_SIDE = 2**31 - 1
"""Of an image, in pixels: what a column of 32 bits holds, far above every image format."""

T = TypeVar("T")
Points = tuple[tuple[tuple[float, float], ...], tuple[int, ...]]
"""points_xy and point_labels."""
NO_POINTS: Points = ((), ())
Box = tuple[BoxXYXY | None, str | None]
"""box_xyxy, and the box as its source wrote it."""
NO_BOX: Box = (None, None)


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
    """The prompt, with `error` set to everything that is wrong with it; never raises."""
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
        category_id=attempt(lambda: _integer(source.category_id, "category_id"), None),
        category=attempt(lambda: _text(source.category, "category"), None),
        iscrowd=attempt(lambda: _flag(source.iscrowd, "iscrowd"), False),
        score=attempt(lambda: _score(source.score), None),
        attributes=source.attributes,
    )
    # That there is neither box nor points is no news when one of them, or the whole record, could not be read.
    if box is not None or points or labels or not problems:
        # What breaks the rules is not kept as a prompt: it may hold NaN, or lie outside the image.
        unusable = replace(prompt, box_xyxy=None, points_xy=(), point_labels=())
        prompt = attempt(lambda: check_prompt(prompt, source.size_hw, box_as_given=box_as_given), unusable)
    return replace(prompt, error=f"{source.where}: {'; '.join(problems)}") if problems else prompt


def id_text(value: Any) -> str | None:
    """An id of the source as text: 7, 7.0 and "7" are one id. None when the value is not an id."""
    if isinstance(value, str):
        return _valid_unicode(value) or None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def image_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that an image entry states, None unless both are whole numbers that an image can have."""
    height, width = entry.get("height"), entry.get("width")
    if isinstance(height, int) and isinstance(width, int) and 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE:
        return height, width
    return None


def attributes_json(record: Mapping[str, Any], known: Container[str]) -> str | None:
    """The small values of a record that no field of a prompt holds, as a JSON object; None when there are none."""
    rest = {name: value for name, value in record.items() if name not in known and value is not None}
    texts = {name: json.dumps(value, default=str) for name, value in rest.items()}
    # JSON has no NaN and no infinity: these become text.
    kept = {
        name: json.loads(text, parse_constant=str) for name, text in texts.items() if len(text) <= MAX_ATTRIBUTE_CHARS
    }
    return json.dumps(kept, sort_keys=True) if kept else None


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
    points = []
    for point in given or ():
        x, y = _numbers(point, 2, "a point of 2 numbers (x, y)")
        points.append((x, y))
    if labels is None:
        return tuple(points), (1,) * len(points)
    if not isinstance(labels, list | tuple) or not all(_is_whole(label) for label in labels):
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


def _integer(value: Any, name: str) -> int | None:
    if value is None:
        return None
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    if not isinstance(number, int) or isinstance(number, bool) or abs(number) > MAX_INT64:
        raise PromptError(f"expected a whole number of at most 64 bits as {name}, got {value!r:.80}")
    return number


def _text(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise PromptError(f"expected text as {name}, got {value!r:.80}")
    return _valid_unicode(value)


def _valid_unicode(text: str) -> str:
    """JSON can smuggle in half a surrogate pair, which no file or table can hold: it is written out as an escape."""
    return text.encode(errors="backslashreplace").decode()


def _flag(value: Any, name: str) -> bool:
    if value is None:
        return False
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise PromptError(f"expected 0 or 1 as {name}, got {value!r:.80}")


def _score(value: Any) -> float | None:
    if value is None:
        return None
    (score,) = _numbers([value], 1, "a number as score")
    if not math.isfinite(score):
        raise PromptError(f"expected a finite number as score, got {score}")
    return score
