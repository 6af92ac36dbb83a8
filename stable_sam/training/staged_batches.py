"""The batches of a base's training, whose input size grows in stages."""

from __future__ import annotations

from stable_sam.training.dataset import Batch, TrainingBatches, TrainingImage
from stable_sam.training.training_config import BaseTraining


class StagedBatches:
    """Batches by step number over all stages; each stage draws its own samples."""

    def __init__(self, sets: dict[str, list[TrainingImage]], settings: BaseTraining, points: int) -> None:
        """`points` are drawn for each object; raises `ConfigError` for a weight without its set."""
        self._by_step: list[TrainingBatches] = []
        for number, stage in enumerate(settings.stages):
            batches = TrainingBatches(
                sets, settings.set_weights, size=stage.size, batch_images=stage.batch_images, objects=settings.objects,
                points=points, seed=settings.seed + number, paste=settings.paste,
            )  # fmt: skip
            self._by_step += [batches] * stage.steps

    def __getitem__(self, step: int) -> Batch:
        return self._by_step[step][step]
