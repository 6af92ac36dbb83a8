"""Batches for the training of a base, whose input size grows from stage to stage."""

from __future__ import annotations

from stable_sam.training.dataset import Batch, TrainingBatches, TrainingImage
from stable_sam.training.training_config import BaseTraining


class StagedBatches:
    """Batches by step number, counted over all stages; each stage draws its own samples."""

    def __init__(self, sets: dict[str, list[TrainingImage]], config: BaseTraining, points: int) -> None:
        """`points` is the number of points that are drawn for each object.

        Raises `ConfigError` for a weight of a set that is not there.
        """
        self._by_step: list[TrainingBatches] = []
        for number, stage in enumerate(config.stages):
            batches = TrainingBatches(
                sets, config.set_weights, size=stage.size, batch_images=stage.batch_images, objects=config.objects,
                points=points, seed=config.seed + number, paste=config.paste,
            )  # fmt: skip
            self._by_step += [batches] * stage.steps

    def __getitem__(self, step: int) -> Batch:
        return self._by_step[step][step]
