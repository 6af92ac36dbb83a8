"""Training batches from cached embeddings, in the frame of inference; which picture comes when is fixed by the seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from stable_sam.errors import AnnotationError, ConfigError
from stable_sam.evaluation.prompts import tight_box
from stable_sam.images.frames import Frame
from stable_sam.modeling.features import ImageFeatures, stack_features
from stable_sam.modeling.nano import MASK_STRIDE
from stable_sam.prompt_noise import random_points
from stable_sam.training.dataset import MIN_OBJECT_FRACTION, TrainingImage, cut_window, set_share, window_around
from stable_sam.training.embeddings import EmbeddingCache
from stable_sam.training.training_config import FrozenBaseTraining

Sets = dict[str, list[TrainingImage]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedBatch:
    """B pictures or windows with M objects each; coordinates in pixels of the model's S x S input."""

    features: ImageFeatures
    """Of B images, with early ones where they were asked for."""
    coverage: Tensor
    """(B, M, S/4, S/4), part of each cell the object covers."""
    boxes: Tensor
    """(B, M, 4) XYXY, tight around the objects."""
    points: Tensor
    """(B, M, N, 2), drawn uniformly from the objects."""

    def to(self, device: torch.device) -> EmbeddedBatch:
        """The same batch on `device`, everything in float32: half precision is for the disk."""
        return EmbeddedBatch(
            features=self.features.map(lambda part: part.to(device).float()), coverage=self.coverage.to(device),
            boxes=self.boxes.to(device), points=self.points.to(device),
        )  # fmt: skip


class EmbeddedBatches:
    """Batches by step number. Pictures come as `settings` say, objects of a picture each as often as any other."""

    def __init__(self, sets: Sets, settings: FrozenBaseTraining, cache: EmbeddingCache) -> None:
        """Objects under MIN_OBJECT_FRACTION are left out, and so are pictures without another.

        Raises `AnnotationError` when nothing is left, `ConfigError` for a weight without its set.
        """
        self.settings, self.cache = settings, cache
        pools, share = _pools(sets, settings.set_weights)
        self.steps = settings.steps or max(1, round(settings.epochs * sum(map(len, pools)) / settings.batch_images))
        schedule = _schedule(pools, share, self.steps * settings.batch_images, settings.seed)
        rng = np.random.default_rng((settings.seed, 1))
        shown = {item.path: _shown(item, settings.windows, rng) for item in {i.path: i for i in schedule}.values()}
        self.schedule = [shown[item.path] for item in schedule]
        """The pictures, or their windows, in the order in which they come."""

    def fill_cache(self) -> None:
        """Encode the pictures that will come and have not been encoded before."""
        self.cache.fill({item.path: item for item in self.schedule}.values())

    def __getitem__(self, step: int) -> EmbeddedBatch:
        rng = np.random.default_rng((self.settings.seed, step))
        count = self.settings.batch_images
        items = self.schedule[step * count : (step + 1) * count]
        targets = [self._targets(item, rng) for item in items]
        coverage, boxes, points = (torch.from_numpy(np.stack(part)) for part in zip(*targets, strict=True))
        features = stack_features([self.cache.read(item) for item in items])
        return EmbeddedBatch(features=features, coverage=coverage, boxes=boxes, points=points)

    def _targets(self, item: TrainingImage, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
        """(M, S/4, S/4) coverage, (M, 4) boxes, (M, N, 2) points of the objects asked for; a picture with fewer objects
        shows them again, by other points."""
        frame = Frame(item.size_hw, self.cache.size)
        order = rng.permutation(len(item.rles))[: self.settings.objects]
        masks = {index: coco_mask.decode(item.rles[index]) for index in order}
        chosen = [masks[order[n % len(order)]] for n in range(self.settings.objects)]
        count = max(self.settings.point_counts)
        return (
            np.stack([cell_coverage(mask, frame) for mask in chosen]),
            frame.to_model_xyxy(np.stack([tight_box(mask.astype(bool)) for mask in chosen])),
            frame.to_model_xy(np.stack([random_points(mask.astype(bool), count, rng) for mask in chosen])),
        )


def _shown(item: TrainingImage, share: float, rng: np.random.Generator) -> TrainingImage:
    """The whole picture, or in `share` of the cases a window around one of its objects."""
    if rng.random() >= share:
        return item
    bbox_xywh = coco_mask.toBbox(item.rles[rng.integers(len(item.rles))])
    return cut_window(item, window_around(item.size_hw, bbox_xywh, rng))


def cell_coverage(mask: NDArray[np.uint8], frame: Frame) -> NDArray[np.float32]:
    """The part (S/4, S/4) of each cell of the decoder's grid that `mask` (H, W) of 0 and 1 covers."""
    height, width = frame.resized_hw
    smaller = height < mask.shape[0]
    square = np.zeros((frame.side, frame.side), np.uint8)
    square[:height, :width] = cv2.resize(
        mask * np.uint8(255), (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    cells = frame.side // MASK_STRIDE
    return np.asarray(cv2.resize(square, (cells, cells), interpolation=cv2.INTER_AREA), np.float32) / np.float32(255)


def _pools(sets: Sets, weights: dict[str, float]) -> tuple[list[list[TrainingImage]], NDArray[np.float64]]:
    """Pictures that are drawn alike, and the share of each pool in the batches."""
    if unknown := sorted(weights.keys() - sets.keys()):
        raise ConfigError(f"set_weights: expected names among {', '.join(sorted(sets))}, got {', '.join(unknown)}")
    usable = {name: _usable(sets[name]) for name in sorted(sets) if weights.get(name, 1.0) > 0}
    usable = {name: items for name, items in usable.items() if items}
    if not usable:
        raise AnnotationError(
            f"training sets {', '.join(sorted(sets))}: expected objects of at least {MIN_OBJECT_FRACTION:.1%} of the "
            "input in sets that weigh more than 0, got none"
        )
    if not weights:
        return [[item for items in usable.values() for item in items]], np.ones(1)
    return list(usable.values()), set_share(list(usable), weights)


def _usable(items: list[TrainingImage]) -> list[TrainingImage]:
    kept = []
    for item in items:
        areas = coco_mask.area(item.rles)
        smallest = MIN_OBJECT_FRACTION * max(item.size_hw) ** 2
        rles: list[dict[str, Any]] = [rle for rle, area in zip(item.rles, areas, strict=True) if area >= smallest]
        if rles:
            kept.append(replace(item, rles=rles))
    return kept


def _schedule(
    pools: list[list[TrainingImage]], share: NDArray[np.float64], count: int, seed: int
) -> list[TrainingImage]:
    """`count` pictures: pools by share, and in each pool every picture once before any comes again."""
    rng = np.random.default_rng(seed)
    pool_of = rng.choice(len(pools), size=count, p=share)
    schedule: list[TrainingImage] = [pools[0][0]] * count
    for number, pool in enumerate(pools):
        places = np.flatnonzero(pool_of == number)
        rounds = -(-len(places) // len(pool))
        order = np.concatenate([rng.permutation(len(pool)) for _ in range(rounds)] or [np.zeros(0, np.int64)])
        for place, index in zip(places, order[: len(places)], strict=True):
            schedule[place] = pool[index]
    return schedule
