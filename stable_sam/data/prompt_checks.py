"""From what an annotation file says to a checked `Prompt`: the one place that decides whether a weak prompt is usable.

The readers fill in a `SourceAnnotation` without judging it; `checked_prompt` makes a `Prompt` of it in every case, with
the reasons in `error` when it cannot be used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from stable_sam.errors import PromptError
from stable_sam.records import BoxXYXY, Prompt

MAX_ATTRIBUTE_CHARS = 200
"""Longer values (polygons, masks, embeddings) are the source's payload, not attributes of the prompt."""
MAX_INT64 = 2**63 - 1

T = TypeVar("T")
Points = tuple[tuple[tuple[float, float], ...], tuple[int, ...]]
"""points_xy and point_labels."""
NO_POINTS: Points = ((), ())


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

    def attempt(check: Callable[[], T], otherwise: T) -> T:
        try:
            return check()
        except PromptError as error:
            problems.append(str(error))
            return otherwise

    box = attempt(lambda: _box(source), None)
    points, labels = attempt(lambda: _points(source), NO_POINTS)
    if not problems and box is None and not points:
        problems.append("expected a box, points, or both, got neither")
    return Prompt(
        prompt_id=source.prompt_id,
        image_id=source.image_id,
        image_uri=source.image_uri,
        box_xyxy=box,
        points_xy=points,
        point_labels=labels,
        annotation_id=source.annotation_id,
        category_id=attempt(lambda: _integer(source.category_id, "category_id"), None),
        category=attempt(lambda: _text(source.category, "category"), None),
        iscrowd=attempt(lambda: _flag(source.iscrowd, "iscrowd"), False),
        score=attempt(lambda: _score(source.score), None),
        attributes=source.attributes,
        error=f"{source.where}: {'; '.join(problems)}" if problems else None,
    )


def id_text(value: Any) -> str | None:
    """An id of the source as text: 7, 7.0 and "7" are one id. None when the value is not an id."""
    if isinstance(value, str):
        return _valid_unicode(value) or None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def image_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that an image entry states, None unless both are positive whole numbers."""
    height, width = entry.get("height"), entry.get("width")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
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


def _box(source: SourceAnnotation) -> BoxXYXY | None:
    given_xyxy, given_xywh = _absent_if_empty(source.box_xyxy), _absent_if_empty(source.box_xywh)
    if given_xyxy is not None and given_xywh is not None:
        raise PromptError("expected box_xyxy or bbox_xywh, got both")
    if given_xywh is not None:
        frame = "XYWH"
        given = _numbers(given_xywh, 4, "a box of 4 numbers (XYWH)")
        x0, y0, x1, y1 = given[0], given[1], given[0] + given[2], given[1] + given[3]
    elif given_xyxy is not None:
        frame = "XYXY"
        given = _numbers(given_xyxy, 4, "a box of 4 numbers (XYXY)")
        x0, y0, x1, y1 = given
    else:
        return None
    shown = f"{list(given)} ({frame})"
    if not all(math.isfinite(value) for value in (*given, x1, y1)):
        raise PromptError(f"expected a box of finite numbers, got {shown}")
    if x1 < x0 or y1 < y0:
        raise PromptError(f"the box is inverted: expected width and height above 0, got {shown}")
    if x1 == x0 or y1 == y0:
        raise PromptError(f"the box is empty: expected width and height above 0, got {shown}")
    if max(given) <= 1:
        raise PromptError(f"the box looks normalised: expected pixels, got no value above 1: {shown}")
    height, width = source.size_hw or (math.inf, math.inf)
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise PromptError(f"the box lies outside the image: expected a box in {_size(source.size_hw)}, got {shown}")
    return max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)


def _points(source: SourceAnnotation) -> Points:
    given, given_labels = _absent_if_empty(source.points_xy), _absent_if_empty(source.point_labels)
    if given is None:
        if given_labels is not None:
            raise PromptError(f"expected one label for each point, got no points and labels {given_labels!r:.80}")
        return NO_POINTS
    if not isinstance(given, list | tuple):
        raise PromptError(f"expected a list of points [x, y], got {given!r:.80}")
    points = []
    for point in given:
        x, y = _numbers(point, 2, "a point of 2 numbers (x, y)")
        points.append((x, y))
    _check_points(points, source.size_hw)
    labels = [1] * len(points) if given_labels is None else given_labels
    if not isinstance(labels, list | tuple) or len(labels) != len(points):
        raise PromptError(f"expected {len(points)} point labels, one for each point, got {labels!r:.80}")
    if not all(isinstance(label, int | float) and label in (0, 1) for label in labels):
        raise PromptError(f"expected point labels 1 (on the object) or 0 (background), got {labels!r:.80}")
    return tuple(points), tuple(int(label) for label in labels)


def _check_points(points: list[tuple[float, float]], size_hw: tuple[int, int] | None) -> None:
    shown = f"{[list(point) for point in points]!r:.80}"
    values = [value for point in points for value in point]
    if not all(math.isfinite(value) for value in values):
        raise PromptError(f"expected points of finite numbers, got {shown}")
    # Whole numbers up to 1 are the image's first pixels; only fractions betray a normalised point.
    if max(values) <= 1 and any(not value.is_integer() for value in values) and min(values) >= 0:
        raise PromptError(f"the points look normalised: expected pixels, got no value above 1: {shown}")
    height, width = size_hw or (math.inf, math.inf)
    if not all(0 <= x <= width and 0 <= y <= height for x, y in points):
        raise PromptError(f"a point lies outside the image: expected points in {_size(size_hw)}, got {shown}")


def _size(size_hw: tuple[int, int] | None) -> str:
    return f"{size_hw[1]} x {size_hw[0]} pixels" if size_hw else "the image"


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
