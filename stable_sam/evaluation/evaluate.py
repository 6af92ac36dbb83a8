"""Make the paper's tables: SAM, HQ-SAM and Stable-SAM on one frozen base, the same images and the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from stable_sam.errors import ConfigError
from stable_sam.evaluation.alpha import AlphaCorrelation, correlate_alpha
from stable_sam.evaluation.averages import TableLine, summarise
from stable_sam.evaluation.by_object import object_means
from stable_sam.evaluation.detections import match_detections
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.methods import ModelFacts, method_config
from stable_sam.evaluation.result_records import join_records
from stable_sam.evaluation.routing_bound import RoutingBound, routing_bounds
from stable_sam.evaluation.sample import sample_objects
from stable_sam.evaluation.scoring import Scorer
from stable_sam.evaluation.true_masks import DetectionCounts, TruthSet, read_truth
from stable_sam.runs.preflight import check_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCounts:
    """How many images, objects and detections a set has, and how many annotations were left out."""

    images: int
    objects: int
    left_out_crowd: int
    left_out_small: int
    detections: DetectionCounts | None
    """None when no detections were read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The figures of an evaluation, and all that is needed to compute them again."""

    model: ModelFacts
    settings: EvaluationConfig
    sets: dict[str, SetCounts]
    skipped: dict[str, int]
    """Number of objects without a prompt of a kind, by kind: no other object is there to share a box with, or no
    detection was matched."""
    scores: tuple[TableLine, ...]
    routing: tuple[RoutingBound, ...]
    """What choosing the better of SAM's mask and another method's could gain, for each kind of prompt."""
    alpha: tuple[AlphaCorrelation, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as plain values for `json.dump`."""
        return {**asdict(self), "settings": self.settings.model_dump(mode="json")}


def evaluate(
    data_dirs: Sequence[Path],
    settings: EvaluationConfig,
    *,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Evaluation, pa.Table]:
    """Compare the methods of `settings` on prompts drawn from true masks; returns the figures and the records.

    data_dirs: folders for `read_truth`. on_image: called after each image with the number of images done and of all
    images. The records of all images are held in memory, about 150 bytes a mask; the pixels and masks of one image at a
    time. Raises `ConfigError`, `AnnotationError`, `ImageError`, `StorageError` or `WeightsError`.
    """
    sets = read_sets(data_dirs, settings)
    scorer = Scorer(settings)
    total = sum(len(part.images) for part in sets)
    tables: list[pa.Table] = []
    for part in sets:
        for image in part.images:
            tables.append(scorer.score(part.name, image))
            on_image(len(tables), total)
    return evaluation_of(tables, scorer.facts, sets, settings)


def read_sets(data_dirs: Sequence[Path], settings: EvaluationConfig) -> list[TruthSet]:
    """Read the images and objects to evaluate; raises `AnnotationError`, `ConfigError` and `StorageError`."""
    # Missing weights are found before hours of reading.
    check_weights(method_config(settings.refiner, settings.models))
    sets = [
        part
        for folder in data_dirs
        for part in read_truth(folder, min_area_fraction=settings.min_area_fraction, limit=settings.limit)
    ]
    names = [part.name for part in sets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"data: expected sets of different names, got {', '.join(repeated)} more than once")
    if not any(part.images for part in sets):
        raise ConfigError(f"data: expected objects to evaluate, found none in {', '.join(names) or 'no set'}")
    if settings.detections_uri is not None:
        sets = match_detections(sets, settings.detections_uri)
    return sets if settings.max_objects is None else sample_objects(sets, settings.max_objects, settings.seed)


def evaluation_of(
    tables: Sequence[pa.Table], facts: ModelFacts, sets: Sequence[TruthSet], settings: EvaluationConfig
) -> tuple[Evaluation, pa.Table]:
    """Compute the figures of an evaluation from the records of its images, and join the records to one table.

    tables: the records of each image (`Scorer.score`), in the order of `sets`.
    """
    records = join_records(tables)
    by_kind = list(object_means(records, settings))
    objects = sum(part.objects for part in sets)
    asked = dict.fromkeys(settings.prompts, 0) | {means.prompts: len(means.keys) for means in by_kind}
    evaluation = Evaluation(
        model=facts,
        settings=settings,
        sets={
            part.name: SetCounts(
                images=len(part.images),
                objects=part.objects,
                left_out_crowd=part.crowd,
                left_out_small=part.small,
                detections=part.detections,
            )
            for part in sets
        },
        skipped={kind: objects - count for kind, count in asked.items() if count < objects},
        scores=tuple(summarise(by_kind, settings)),
        routing=tuple(routing_bounds(by_kind, settings)),
        alpha=tuple(correlate_alpha(records, settings.prompts)),
    )
    return evaluation, records
