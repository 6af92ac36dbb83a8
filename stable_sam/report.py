"""One self-contained HTML page of a masks table: what came of the run, then every prompt with its mask, worst first."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray

from stable_sam.config import RunConfig
from stable_sam.data.images import decode_image
from stable_sam.data.query import query
from stable_sam.data.schema import PROMPTS_SCHEMA, prompt_from_row
from stable_sam.data.storage import read_bytes, write_bytes
from stable_sam.errors import ConfigError, ImageError, PromptError, StorageError
from stable_sam.overlay import draw_overlay
from stable_sam.rle import decode_mask

THUMBNAIL_SIDE = 600
"""Longest side of a picture in the page: twice what is shown, for fine screens."""
JPEG_QUALITY = 75
MAX_ZOOM = 6.0
"""Small objects are enlarged no further than this: more shows pixels, not the border."""
CONTEXT = 0.25
"""Surroundings shown around prompt and mask, as a part of their longer side."""
OUTSIDE = 100
"""Pixels around the window in which lines that leave it are still drawn."""
MAX_IMAGE_PIXELS = 100_000_000
OUTCOMES = ("accept", "review", "reject", "failed")
SCORES = {
    "prompt_stability": "prompt stability",
    "predicted_iou": "predicted IoU",
    "stability_score": "stability score",
    "box_agreement": "box agreement",
    "dsp_weight": "DSP weight",
}

_OUTCOME = "CASE WHEN status = 'ok' THEN route ELSE 'failed' END"
_WORST_FIRST = f"""
    SELECT *, {_OUTCOME} AS outcome FROM masks
    ORDER BY list_position(['failed', 'reject', 'review', 'accept'], outcome),
        least(coalesce(prompt_stability, 1), coalesce(predicted_iou, 1)), prompt_id
    LIMIT {{limit}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One prompt in the page."""

    row: dict[str, Any]
    scores: tuple[tuple[str, float], ...]
    """Name and value of each score that the row has."""
    kind: str
    """What the weak prompt is: box, points, or both."""
    attributes: str
    weak: str | None = None
    """The picture with the weak prompt, as a data URI."""
    refined: str | None = None
    """The same with the mask."""
    note: str | None = None
    """Why there is no picture."""
    explanation: str | None = None
    """SAM beside Stable-SAM for this prompt (`stable_sam.explain_drawing`), as a data URI."""
    unexplained: str | None = None
    """Why a prompt that should be explained is not."""


def write_report(
    table_uri: str,
    out_uri: str,
    *,
    limit: int = 200,
    images_max: int | None = None,
    explain: int = 0,
    config: RunConfig | None = None,
) -> int:
    """Write the page of the newest row of each prompt to `out_uri`; returns how many prompts it shows.

    limit: prompts shown, the worst. images_max: pictures opened; prompts of further ones are left out too. What is left
    out is said in the page. A picture that cannot be read any more is replaced by the reason.
    explain: of so many prompts, the worst that got a mask and were not accepted, the page also shows what the decoder
    attends to; by the model of `config` (None: the defaults), when that is the one that made the row. With 0 neither
    the model nor torch is loaded.
    Raises `ConfigError` and `WeightsError` for the model, `StorageError` and `NotFoundError` for the table,
    `StorageError` for the page.
    """
    outcomes = query(table_uri, f"SELECT {_OUTCOME} AS outcome, count(*) AS prompts FROM masks GROUP BY 1")
    counts = dict.fromkeys(OUTCOMES, 0)
    counts.update({row["outcome"]: row["prompts"] for row in outcomes.to_pylist()})
    medians = query(table_uri, f"SELECT {', '.join(f'median({score}) AS {score}' for score in SCORES)} FROM masks")
    runs = query(table_uri, "SELECT * FROM runs ORDER BY revision DESC").to_pylist()
    rows = query(table_uri, _WORST_FIRST.format(limit=int(limit))).to_pylist()
    shown = _of_first_images(rows, images_max)
    page = _template().render(
        table_uri=table_uri,
        run=runs[0] if runs else {},
        total=sum(counts.values()),
        counts=counts,
        medians=[(SCORES[name], value) for name, value in medians.to_pylist()[0].items() if value is not None],
        cards=list(_cards(shown, _explainer(shown, explain, config or RunConfig()))),
    )
    write_bytes(out_uri, page.encode("utf-8"))
    return len(shown)


def _template() -> Any:
    source = (files("stable_sam") / "report.html.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)


def _of_first_images(rows: Sequence[dict[str, Any]], images_max: int | None) -> list[dict[str, Any]]:
    images = list(dict.fromkeys(row["image_uri"] for row in rows))
    kept = set(images[:images_max])
    return [row for row in rows if row["image_uri"] in kept]


Explainer = Callable[[dict[str, Any], NDArray[np.uint8]], tuple[str | None, str | None]]
"""A row that was chosen and its picture, to `Card.explanation` and `Card.unexplained`; (None, None) for other rows."""


def _explainer(rows: Sequence[dict[str, Any]], count: int, config: RunConfig) -> Explainer:
    chosen = [row["prompt_id"] for row in rows if row["status"] == "ok" and row["route"] != "accept"][:count]
    if not chosen:
        return lambda row, picture: (None, None)
    from stable_sam.explain import explain
    from stable_sam.explain_drawing import draw
    from stable_sam.refiner import Refiner

    refiner = Refiner(config.refiner, config.routing)

    def explained(row: dict[str, Any], picture: NDArray[np.uint8]) -> tuple[str | None, str | None]:
        if row["prompt_id"] not in chosen:
            return None, None
        made_by, given = _model_name(row), _model_name(asdict(refiner.identity))
        if made_by != given:
            return None, f"{made_by} made this mask, and the report was given {given}"
        prompt = prompt_from_row({name: row[name] for name in PROMPTS_SCHEMA.names})
        try:
            return _data_uri(draw(explain(refiner, picture, prompt))), None
        except (PromptError, ConfigError) as error:
            return None, str(error)

    return explained


def _model_name(identity: Mapping[str, str]) -> str:
    return f"{identity['model_id']} in {identity['dtype']}, weights {identity['weights_sha256'][:16]}"


def _cards(rows: Sequence[dict[str, Any]], explainer: Explainer) -> Iterator[Card]:
    """Cards in the order of `rows`. Pictures are opened one by one, each once, however their prompts are spread."""
    by_image: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_image.setdefault(row["image_uri"], []).append(index)
    cards: dict[int, Card] = {}
    for image_uri, indices in by_image.items():
        picture = _picture(image_uri)
        for index in indices:
            cards[index] = _card(rows[index], picture, explainer)
    return (cards[index] for index in range(len(rows)))


def _picture(image_uri: str) -> NDArray[np.uint8] | str:
    """The pixels, or why there are none."""
    if not image_uri:
        return "the annotation names no image"
    try:
        return decode_image(read_bytes(image_uri), name=image_uri, max_pixels=MAX_IMAGE_PIXELS)
    except (ImageError, StorageError) as error:
        return str(error)


def _card(row: dict[str, Any], picture: NDArray[np.uint8] | str, explainer: Explainer) -> Card:
    kind = " and ".join(name for name, part in (("box", row["box_xyxy"]), ("points", row["points_xy"])) if part)
    weak = refined = explanation = unexplained = None
    note = picture if isinstance(picture, str) else None
    if not isinstance(picture, str):
        mask = decode_mask(tuple(row["mask_size"]), row["mask_counts"]) if row["mask_counts"] is not None else None
        if mask is not None and mask.shape != picture.shape[:2]:
            note = f"the image is now {picture.shape[:2]}, the mask was made at {mask.shape}"
        else:
            weak, refined = _thumbnails(row, picture, mask)
            explanation, unexplained = explainer(row, picture)
    attributes = json.loads(row["attributes"]) if row["attributes"] else {}
    return Card(
        row=row,
        scores=tuple((label, row[name]) for name, label in SCORES.items() if row[name] is not None),
        kind=kind or "no prompt",
        attributes=", ".join(f"{key}: {value}" for key, value in attributes.items()),
        weak=weak,
        refined=refined,
        note=note,
        explanation=explanation,
        unexplained=unexplained,
    )


def _thumbnails(
    row: dict[str, Any], picture: NDArray[np.uint8], mask: NDArray[np.bool_] | None
) -> tuple[str, str | None]:
    """The part of the picture around prompt and mask: with the weak prompt, and with the mask when there is one."""
    x0, y0, x1, y1 = _window(row, picture.shape[:2])
    scale = min(THUMBNAIL_SIDE / max(x1 - x0, y1 - y0), MAX_ZOOM)
    size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    part = np.asarray(cv2.resize(picture[y0:y1, x0:x1], size, interpolation=method), dtype=np.uint8)
    # What lies outside the window stays outside, but near: a box of a failed row may be millions of pixels long.
    low, high = np.array([x0, y0]) - OUTSIDE, np.array([x1, y1]) + OUTSIDE
    prompt: dict[str, Any] = {}
    if _drawable(row["box_xyxy"]):
        corners = (np.clip(np.reshape(row["box_xyxy"], (2, 2)), low, high) - (x0, y0)) * scale
        prompt["box_xyxy"] = tuple(corners.ravel().tolist())
    points, labels = row["points_xy"] or (), row["point_labels"] or ()
    if points and all(_drawable(point) for point in points):
        prompt["points_xy"] = ((np.clip(points, low, high) - (x0, y0)) * scale).tolist()
        known = labels if len(labels) == len(points) else [1] * len(points)
        prompt["point_labels"] = [int(label > 0) for label in known]
    weak = _data_uri(draw_overlay(part, None, **prompt))
    if mask is None:
        return weak, None
    covered = np.ascontiguousarray(mask[y0:y1, x0:x1]).view(np.uint8) * np.uint8(255)
    scaled = np.asarray(cv2.resize(covered, size, interpolation=cv2.INTER_LINEAR)) > 127
    return weak, _data_uri(draw_overlay(part, scaled))


def _window(row: dict[str, Any], image_hw: tuple[int, ...]) -> tuple[int, int, int, int]:
    """XYXY of what to show; the whole picture when the row has neither a usable prompt nor a mask."""
    height, width = image_hw
    corners: list[tuple[float, float]] = [point for point in row["points_xy"] or () if _drawable(point)]
    if _drawable(row["box_xyxy"]):
        corners += [tuple(row["box_xyxy"][:2]), tuple(row["box_xyxy"][2:])]
    if row["area"]:
        x, y, w, h = row["bbox_xywh"]
        corners += [(x, y), (x + w, y + h)]
    if not corners:
        return 0, 0, width, height
    points = np.clip(np.array(corners), 0, [width, height])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = max(CONTEXT * float((high - low).max()), 16.0)
    x0, y0 = np.maximum(np.floor(low - margin), 0).astype(int).tolist()
    x1, y1 = np.minimum(np.ceil(high + margin), [width, height]).astype(int).tolist()
    return x0, y0, x1, y1


def _drawable(numbers: Sequence[float] | None) -> bool:
    """Whether a box or point can be drawn. The readers give failed rows what box and points are finite; a `Prompt` made
    by hand may hold anything."""
    return numbers is not None and all(number is not None and math.isfinite(number) for number in numbers)


def _data_uri(image_rgb: NDArray[np.uint8]) -> str:
    image_bgr = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
