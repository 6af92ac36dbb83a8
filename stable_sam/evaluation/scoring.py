"""Score one image: draw prompts from its true masks, and compare every method's answers with the true masks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stable_sam.config import RefinerConfig
from stable_sam.errors import ImageError
from stable_sam.evaluation.evaluation_config import BOX, EvaluationConfig
from stable_sam.evaluation.methods import load_methods, select_method
from stable_sam.evaluation.metrics import Mask, MaskUnion, ReferenceMask
from stable_sam.evaluation.neighbours import find_neighbours
from stable_sam.evaluation.prompts import (
    DETECTOR_BOXES,
    WORST_BOX,
    Boxes,
    PromptKind,
    box_iou,
    fill_box,
    prompt_rng,
    tight_box,
)
from stable_sam.evaluation.result_records import record_table
from stable_sam.evaluation.true_masks import TruthImage
from stable_sam.evaluation.worst_box import START, search_worst_box
from stable_sam.images.decode import decode_for_input
from stable_sam.images.frames import Frame
from stable_sam.images.orientation import size_problem
from stable_sam.images.resize import resize_image
from stable_sam.images.tile_pixels import TilePixels
from stable_sam.images.tiles import CELL, TilePlan, TileRule, tile_rule
from stable_sam.modeling.load import LoadedModel
from stable_sam.records import Prompt, View, Window
from stable_sam.refining.predict import frame_of
from stable_sam.refining.refiner import Encoded, ask_views

DECODER_CHUNK = 8
"""Number of prompts that pass the decoder together: on a CPU a quarter faster than 32, which its caches do not hold."""
VIEWS = 64
"""Most views of an image (the whole image and tiles) whose embeddings are kept. One object takes a few of them, for all
its prompts and methods, and the objects follow one after the other."""


@dataclass(frozen=True, slots=True)
class _OpenImage:
    """An image that was decoded, and its embeddings."""

    hw: tuple[int, int]
    """Height and width of the upright image."""
    encode: Callable[[Window | None], Encoded]
    """Returns the view of a window, or of the whole image for None. The last `VIEWS` views are kept."""


@dataclass(frozen=True, slots=True)
class _Object:
    """An object to evaluate, what its masks are compared with, and the columns that all its records share."""

    mask: Mask
    truth: ReferenceMask
    whole: ReferenceMask | None
    nearest_xyxy: NDArray[np.float64] | None
    detected_xyxy: NDArray[np.float64] | None
    """(1, 4), the box of a detector; None when there is none."""
    annotation_id: str
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer of a method to one prompt."""

    mask: Callable[[], Mask]
    """Returns the mask (H, W), made only when it is called, because masks of original size are large."""
    predicted_iou: float | None
    """IoU that the model estimates; None for the method box."""
    dsp_weight: float
    view: View | None
    """As `RefinedMask.view`."""


class Scorer:
    """Scores images with one loaded model, which answers as each of the methods."""

    def __init__(self, settings: EvaluationConfig) -> None:
        """Load the model; raises what `load_methods` raises."""
        self.settings = settings
        self.kinds = [PromptKind.parse(name) for name in settings.prompts]
        self.model, self.facts = load_methods(settings.refiner, settings.models, settings.size)
        self.tile_rule = _tile_rule(settings.refiner, self.facts.input_size)

    def score(self, set_name: str, image: TruthImage) -> pa.Table:
        """Return the records of one image of a set, in the columns of `result_records.SCHEMA`.

        They depend only on the settings, the image and the names of set and objects. Raises `ImageError` for a file
        that cannot be read, or whose size is not that of its true masks.
        """
        opened = _open_image(self.model, image, self.settings.refiner.max_image_pixels)
        rows: list[dict[str, Any]] = []
        for item in _objects(set_name, image, self.facts.input_size // CELL):
            for kind in self.kinds:
                score = self._score_worst if kind.name == WORST_BOX else self._score_drawn
                rng = prompt_rng(self.settings.seed, set_name, item.annotation_id, kind.name)
                rows += score(opened, item, kind, rng)
        return record_table(rows)

    def _score_drawn(
        self, image: _OpenImage, item: _Object, kind: PromptKind, rng: np.random.Generator
    ) -> Iterator[dict[str, Any]]:
        """Records of the kinds whose prompts are the same for every method."""
        if kind.name == DETECTOR_BOXES:
            drawn = item.detected_xyxy
        else:
            drawn = kind.draw(item.mask, rng, self.settings.random_prompts if kind.is_random else 1, item.nearest_xyxy)
        if drawn is None:
            return
        qualities = np.full(len(drawn), kind.points) if kind.points else box_iou(drawn, tight_box(item.mask))
        prompts = _prompts(drawn)
        for method in self.settings.models if kind.points else self.settings.methods:
            compared = _compare(item, self._ask(image, method, prompts))
            for number, (figures, quality) in enumerate(zip(compared, qualities.tolist(), strict=True)):
                box = None if kind.points else drawn[number].tolist()
                yield _record(item, method, kind, figures, number=number, quality=quality, box_xyxy=box)

    def _score_worst(
        self, image: _OpenImage, item: _Object, kind: PromptKind, rng: np.random.Generator
    ) -> Iterator[dict[str, Any]]:
        """One record for each method, with its own worst box."""
        seed = rng.integers(2**63)
        for method in self.settings.methods:
            yield self._worst_record(image, item, kind, method, np.random.default_rng(seed))

    def _worst_record(
        self, image: _OpenImage, item: _Object, kind: PromptKind, method: str, rng: np.random.Generator
    ) -> dict[str, Any]:
        """The record of the worst box; its union_iou is mSF over the boxes that every method's search starts from."""
        answers: list[_Answer] = []
        union = MaskUnion(image.hw)

        def mask_iou(boxes: Boxes) -> NDArray[np.float64]:
            ious = []
            for answer in self._ask(image, method, _prompts(boxes)):
                mask = answer.mask()
                ious.append(item.truth.iou(mask))
                if len(answers) < START:
                    union.add(mask)
                answers.append(answer)
            return np.array(ious)

        true_box = tight_box(item.mask)
        boxes, ious = search_worst_box(true_box, image.hw, rng, mask_iou)
        worst = int(ious.argmin())
        [figures] = _compare(item, [answers[worst]])
        figures["union_iou"] = float(np.mean(union.ious()))
        quality = float(box_iou(boxes[worst : worst + 1], true_box)[0])
        return _record(item, method, kind, figures, number=0, quality=quality, box_xyxy=boxes[worst].tolist())

    def _ask(self, image: _OpenImage, method: str, prompts: Sequence[Prompt]) -> list[_Answer]:
        """The answers of `method` to the prompts, in the views that a refiner would take."""
        if method == BOX:
            return [
                _Answer(partial(fill_box, np.array(prompt.box_xyxy), image.hw), None, 0.0, None)
                for prompt in prompts
            ]  # fmt: skip
        select_method(self.model, method)
        plan = TilePlan(self.tile_rule, image.hw, prompts)
        answers: dict[int, _Answer] = {}
        for encoded, asked, prediction in ask_views(self.model, plan, prompts, image.encode, DECODER_CHUNK):
            for row, index in enumerate(asked):
                answers[index] = _Answer(
                    partial(_to_mask, encoded.view.frame, prediction.logits[row]),
                    float(prediction.iou[row]),
                    float(prediction.dsp_weight[row]),
                    plan.view(index),
                )
        return [answers[index] for index in range(len(prompts))]


def _compare(item: _Object, answers: Sequence[_Answer]) -> list[dict[str, Any]]:
    """The figures of each answer. Only one mask of original size and the union are in memory at a time."""
    union = MaskUnion((item.mask.shape[0], item.mask.shape[1]))
    compared: list[dict[str, Any]] = []
    for answer in answers:
        mask = answer.mask()
        iou, boundary_iou = item.truth.compare(mask)
        compared.append(
            {
                "iou": iou,
                "boundary_iou": boundary_iou,
                "whole_iou": None if item.whole is None else item.whole.compare(mask)[0],
                "predicted_iou": answer.predicted_iou,
                "dsp_weight": answer.dsp_weight,
                "view": answer.view,
            }
        )
        union.add(mask)
    for figures, union_iou in zip(compared, union.ious(), strict=True):
        figures["union_iou"] = None if len(answers) == 1 else union_iou
    return compared


def _record(
    item: _Object,
    method: str,
    kind: PromptKind,
    figures: Mapping[str, Any],
    *,
    number: int,
    quality: float,
    box_xyxy: list[float] | None,
) -> dict[str, Any]:
    prompt = {"prompt": kind.name, "number": number, "prompt_quality": quality, "box_xyxy": box_xyxy}
    return {**item.columns, "method": method, **prompt, **figures}


def _to_mask(frame: Frame, logits: NDArray[np.float32]) -> Mask:
    mask = np.zeros(frame.original_hw, dtype=np.bool_)
    x, y, width, height = frame.region_xywh
    mask[y : y + height, x : x + width] = frame.to_original(logits) > 0
    return mask


def _objects(set_name: str, image: TruthImage, embedding_side: int) -> Iterator[_Object]:
    """The objects to evaluate, one at a time because masks of original size are large.

    embedding_side: side of the image embedding in cells.
    """
    cells_per_pixel = embedding_side / max(image.size_hw)
    pixels = image.size_hw[0] * image.size_hw[1]
    for item, near in zip(image.objects, find_neighbours(image.objects), strict=True):
        if not image.is_asked(item):
            continue
        mask = item.mask()
        box = tight_box(mask)
        whole = None if near.whole is None else image.objects[near.whole]
        yield _Object(
            mask=mask,
            truth=ReferenceMask(mask),
            whole=None if whole is None else ReferenceMask(whole.mask()),
            nearest_xyxy=None if near.nearest is None else image.objects[near.nearest].box_xyxy(),
            detected_xyxy=None if item.detected_xyxy is None else np.array([item.detected_xyxy]),
            annotation_id=item.annotation_id,
            columns={
                "set": set_name,
                "picture": image.name,
                "annotation": item.annotation_id,
                "category": item.category,
                "area_fraction": np.count_nonzero(mask) / pixels,
                "box_cells": float((box[2:] - box[:2]).max()) * cells_per_pixel,
                "whole": None if whole is None else whole.annotation_id,
            },
        )


def _tile_rule(config: RefinerConfig, input_side: int) -> TileRule | None:
    """The refiner's rule without its bound on tiles, because each prompt counts as the only one of its image."""
    rule = tile_rule(config, input_side)
    return None if rule is None else replace(rule, max_tiles=sys.maxsize)


def _open_image(model: LoadedModel, image: TruthImage, max_pixels: int) -> _OpenImage:
    """Decode an image; raises `ImageError` for a file that cannot be read or has another size than its true masks."""
    side = model.sam.input_side
    try:
        data = image.path.read_bytes()
    except OSError as error:
        raise ImageError(f"{image.path}: cannot read: {error.strerror}") from None
    name = str(image.path)
    decoded = decode_for_input(data, name=name, max_pixels=max_pixels, side=side, fit=model.base.fit)
    if problem := size_problem(image.size_hw, decoded.original_hw, decoded.orientation):
        raise ImageError(f"{image.path}: {problem}")
    whole = frame_of(model, decoded.original_hw)
    pixels = resize_image(decoded.pixels, whole, decoded.scale)
    tiles = TilePixels(decoded, file=data, name=name, max_pixels=max_pixels)

    def encode(window: Window | None) -> Encoded:
        frame = replace(whole, window_xywh=window)
        return Encoded(model, pixels if window is None else tiles.resized(frame), frame)

    return _OpenImage(decoded.original_hw, lru_cache(VIEWS)(encode))


def _prompts(drawn: NDArray[np.float64]) -> list[Prompt]:
    """Boxes (B, 4) or points on the object (B, N, 2) as prompts without ids, which nothing needs here."""
    unnamed = Prompt(prompt_id="", image_id="", image_uri="")
    if drawn.ndim == 2:
        return [replace(unnamed, box_xyxy=tuple(box)) for box in drawn.tolist()]
    return [
        replace(unnamed, points_xy=tuple(map(tuple, points)), point_labels=(1,) * len(points))
        for points in drawn.tolist()
    ]  # fmt: skip
