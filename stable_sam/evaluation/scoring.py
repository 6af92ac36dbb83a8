"""One picture with people's masks to records: prompts drawn from the masks, every method's answers compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stable_sam.data.images import Picture, decode_picture
from stable_sam.errors import ImageError
from stable_sam.evaluation.methods import load_methods, select_method
from stable_sam.evaluation.metrics import Mask, ReferenceMask
from stable_sam.evaluation.neighbours import find_neighbours
from stable_sam.evaluation.prompts import PromptKind, box_iou, prompt_rng, tight_box
from stable_sam.evaluation.records import record_table
from stable_sam.evaluation.settings import EvaluationConfig
from stable_sam.evaluation.truth import TruthImage
from stable_sam.predict import ImageView, PromptArrays, embed_image, predict

DECODER_CHUNK = 8
"""Prompts that pass the decoder together; on a CPU a quarter faster than 32, because they stay in its caches."""


@dataclass(frozen=True, slots=True)
class _Object:
    """An object to evaluate, with what its masks are compared with; `columns` are the same in all its records."""

    mask: Mask
    truth: ReferenceMask
    whole: ReferenceMask | None
    nearest_xyxy: NDArray[np.float64] | None
    annotation_id: str
    columns: dict[str, Any]


class Scorer:
    """The loaded model and what is asked of it. Raises as `load_methods`."""

    def __init__(self, settings: EvaluationConfig) -> None:
        self.settings = settings
        self.kinds = [PromptKind.parse(name) for name in settings.prompts]
        self.model, self.facts = load_methods(settings.refiner, settings.methods, settings.size)

    def score(self, set_name: str, image: TruthImage) -> pa.Table:
        """The records of one picture of a set; they depend on the settings, the picture and the names alone.

        Raises `ImageError`.
        """
        side = int(self.model.sam.image_encoder.img_size)
        view = embed_image(self.model, _read_picture(image, self.settings.refiner.max_image_pixels, side))
        rows: list[dict[str, Any]] = []
        for item in _objects(set_name, image):
            for kind in self.kinds:
                rng = prompt_rng(self.settings.seed, set_name, item.annotation_id, kind.name)
                count = self.settings.random_prompts if kind.is_random else 1
                drawn = kind.draw(item.mask, rng, count, item.nearest_xyxy)
                if drawn is None:
                    continue
                qualities = np.full(len(drawn), kind.points) if kind.points else box_iou(drawn, tight_box(item.mask))
                for method in self.settings.methods:
                    select_method(self.model, method)
                    known = {**item.columns, "method": method, "prompt": kind.name}
                    for number, answer in enumerate(self._answers(view, item, _arrays(kind, drawn))):
                        rows.append({**known, "number": number, "prompt_quality": float(qualities[number]), **answer})
        return record_table(rows)

    def _answers(self, view: ImageView, item: _Object, prompts: PromptArrays) -> list[dict[str, Any]]:
        """What came of each prompt. Of the masks of original size only one and the union exist at a time."""
        prediction = predict(self.model, view, prompts, DECODER_CHUNK)
        union = np.zeros_like(item.mask)
        areas: list[int] = []
        answers: list[dict[str, Any]] = []
        for row, logits in enumerate(prediction.logits):
            mask = np.ascontiguousarray(view.frame.to_original(logits) > 0)
            iou, boundary_iou = item.truth.compare(mask)
            answers.append(
                {
                    "iou": iou,
                    "boundary_iou": boundary_iou,
                    "whole_iou": None if item.whole is None else item.whole.compare(mask)[0],
                    "predicted_iou": float(prediction.iou[row]),
                    "dsp_weight": float(prediction.dsp_weight[row]),
                }
            )
            areas.append(int(np.count_nonzero(mask)))
            np.logical_or(union, mask, out=union)
        # Every mask lies inside the union, as in `stability.prompt_stability`: IoU(M_i, M_union) = |M_i| / |M_union|.
        union_area = int(np.count_nonzero(union))
        for answer, area in zip(answers, areas, strict=True):
            answer["union_iou"] = None if len(areas) == 1 else area / union_area if union_area else 0.0
        return answers


def _objects(set_name: str, image: TruthImage) -> Iterator[_Object]:
    """The objects to evaluate, one after the other: masks of original size are large."""
    pixels = image.size_hw[0] * image.size_hw[1]
    for item, near in zip(image.objects, find_neighbours(image.objects), strict=True):
        if not image.is_asked(item):
            continue
        mask = item.mask()
        whole = None if near.whole is None else image.objects[near.whole]
        yield _Object(
            mask=mask,
            truth=ReferenceMask(mask),
            whole=None if whole is None else ReferenceMask(whole.mask()),
            nearest_xyxy=None if near.nearest is None else image.objects[near.nearest].box_xyxy(),
            annotation_id=item.annotation_id,
            columns={
                "set": set_name,
                "picture": image.name,
                "annotation": item.annotation_id,
                "category": item.category,
                "area_fraction": np.count_nonzero(mask) / pixels,
                "whole": None if whole is None else whole.annotation_id,
            },
        )


def _read_picture(image: TruthImage, max_pixels: int, side: int) -> Picture:
    try:
        data = image.path.read_bytes()
    except OSError as error:
        raise ImageError(f"{image.path}: cannot read: {error.strerror}") from None
    picture = decode_picture(data, name=str(image.path), max_pixels=max_pixels, side=side)
    if picture.original_hw != image.size_hw:
        raise ImageError(f"{image.path}: expected height and width {image.size_hw}, got {picture.original_hw}")
    return picture


def _arrays(kind: PromptKind, drawn: NDArray[np.float64]) -> PromptArrays:
    if not kind.points:
        return PromptArrays(boxes_xyxy=drawn)
    return PromptArrays(points_xy=drawn, point_labels=np.ones(drawn.shape[:2], dtype=np.int64))
