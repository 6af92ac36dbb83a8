"""The paper's tables: SAM, HQ-SAM and Stable-SAM on one frozen base, the same pictures and the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from stable_sam.errors import ConfigError
from stable_sam.evaluation.alpha import AlphaCorrelation, correlate_alpha
from stable_sam.evaluation.averages import Score, summarise
from stable_sam.evaluation.by_object import object_means
from stable_sam.evaluation.detections import match_detections
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.methods import ModelFacts, method_config
from stable_sam.evaluation.result_records import join_records
from stable_sam.evaluation.routing_bound import RoutingBound, routing_bounds
from stable_sam.evaluation.sample import sample_objects
from stable_sam.evaluation.scoring import Scorer
from stable_sam.evaluation.true_masks import DetectionCounts, TruthSet, read_truth


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCounts:
    """What was counted of a set, and what was left out."""

    images: int
    objects: int
    left_out_crowd: int
    left_out_small: int
    detections: DetectionCounts | None
    """None: no detections were read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The scores and all that is needed to compute them again."""

    model: ModelFacts
    settings: EvaluationConfig
    sets: dict[str, SetCounts]
    skipped: dict[str, int]
    """Objects that a kind of prompt could not ask for: there is no other object to share a box with, or no detection
    was matched."""
    scores: tuple[Score, ...]
    routing: tuple[RoutingBound, ...]
    """What could be gained by a choice between SAM's mask and another method's, for each prompt."""
    alpha: tuple[AlphaCorrelation, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dump."""
        return {**asdict(self), "settings": self.settings.model_dump(mode="json")}


def evaluate(
    data_dirs: Sequence[Path],
    settings: EvaluationConfig,
    *,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Evaluation, pa.Table]:
    """Compare the methods of `settings` on prompts drawn from people's masks; returns the figures and the records.

    data_dirs: folders for `read_truth`. on_image: called with pictures done and in all. The records of all pictures are
    held in memory, about 150 bytes a mask; pixels and masks of one picture at a time.
    Raises `ConfigError`, `AnnotationError`, `ImageError`, `StorageError` or `WeightsError` with one line.
    """
    sets = read_sets(data_dirs, settings)
    scorer = Scorer(settings)
    total = sum(len(part.images) for part in sets)
    tables: list[pa.Table] = []
    for part in sets:
        for image in part.images:
            tables.append(scorer.score(part.name, image))
            on_image(len(tables), total)
    return conclude(tables, scorer.facts, sets, settings)


def read_sets(data_dirs: Sequence[Path], settings: EvaluationConfig) -> list[TruthSet]:
    """The pictures and objects to evaluate; raises `AnnotationError`, `ConfigError` and `StorageError`."""
    method_config(settings.refiner, settings.models)  # before hours of reading, not after
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
        raise ConfigError(f"data: no object left to evaluate in {', '.join(names) or 'nothing'}")
    if settings.detections_uri is not None:
        sets = match_detections(sets, settings.detections_uri)
    return sets if settings.max_objects is None else sample_objects(sets, settings.max_objects, settings.seed)


def conclude(
    tables: Sequence[pa.Table], facts: ModelFacts, sets: Sequence[TruthSet], settings: EvaluationConfig
) -> tuple[Evaluation, pa.Table]:
    """The figures of the pictures' records, in the order of `sets`, and these records as one table."""
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
