"""Training batches from cached embeddings, in the frame of inference; the seed fixes the order of the images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from stable_sam.bases import Fit
from stable_sam.errors import AnnotationError, ConfigError
from stable_sam.evaluation.prompts import tight_box
from stable_sam.images.frames import Frame
from stable_sam.modeling.bases.base import MASK_STRIDE
from stable_sam.modeling.features import ImageFeatures, stack_features
from stable_sam.prompt_noise import random_points
from stable_sam.refining.predict import frame_of
from stable_sam.training.dataset import TrainingImage, cut_window, set_share
from stable_sam.training.embeddings import EmbeddingCache
from stable_sam.training.training_config import FrozenBaseTraining
from stable_sam.training.windows import MIN_OBJECT_FRACTION, window_around

Sets = dict[str, list[TrainingImage]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedBatch:
    """B images or windows with M objects each; coordinates are in pixels of the model's S x S input."""

    features: ImageFeatures
    """Features of the B images, with early ones when the base has HQ-SAM's branch."""
    coverage: Tensor
    """Part of each cell that the object covers, (B, M, S/4, S/4), from 0 to 1."""
    boxes: Tensor
    """Boxes (B, M, 4) XYXY, tight around the objects."""
    points: Tensor
    """Points xy (B, M, N, 2), drawn uniformly from the objects."""

    def to(self, device: torch.device) -> EmbeddedBatch:
        """Return this batch on `device` in float32; only the cache on disk has half precision."""
        return EmbeddedBatch(
            features=self.features.map(lambda part: part.to(device).float()), coverage=self.coverage.to(device),
            boxes=self.boxes.to(device), points=self.points.to(device),
        )  # fmt: skip


class EmbeddedBatches:
    """Batches by step number. Images come as `config` says, and each object of an image as often as any other."""

    def __init__(self, sets: Sets, config: FrozenBaseTraining, cache: EmbeddingCache) -> None:
        """Leave out objects smaller than `MIN_OBJECT_FRACTION` and images without a larger one, and plan all steps.

        Raises `AnnotationError` when no image is left, and `ConfigError` for a weight of a set that is not there.
        """
        self.config, self.cache = config, cache
        pools, share = _pools(sets, config.set_weights, cache.model.base.fit)
        self.steps = config.steps or max(1, round(config.epochs * sum(map(len, pools)) / config.batch_images))
        schedule = _schedule(pools, share, self.steps * config.batch_images, config.seed)
        rng = np.random.default_rng((config.seed, 1))
        shown = {item.path: _shown(item, config.windows, rng) for item in {i.path: i for i in schedule}.values()}
        self.schedule = [shown[item.path] for item in schedule]
        """Images, or windows of them, in the order in which the batches show them."""

    def fill_cache(self) -> None:
        """Encode the images of the schedule that are not in the cache."""
        self.cache.fill({item.path: item for item in self.schedule}.values())

    def __getitem__(self, step: int) -> EmbeddedBatch:
        rng = np.random.default_rng((self.config.seed, step))
        count = self.config.batch_images
        items = self.schedule[step * count : (step + 1) * count]
        targets = [self._targets(item, rng) for item in items]
        coverage, boxes, points = (torch.from_numpy(np.stack(part)) for part in zip(*targets, strict=True))
        features = stack_features([self.cache.read(item) for item in items])
        return EmbeddedBatch(features=features, coverage=coverage, boxes=boxes, points=points)

    def _targets(self, item: TrainingImage, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
        """Return coverage (M, S/4, S/4), boxes (M, 4) and points (M, N, 2) of M random objects of an image.

        An image with fewer than M objects repeats them, with other points.
        """
        frame = frame_of(self.cache.model, item.size_hw)
        order = rng.permutation(len(item.rles))[: self.config.objects]
        masks = {index: coco_mask.decode(item.rles[index]) for index in order}
        chosen = [masks[order[n % len(order)]] for n in range(self.config.objects)]
        count = max(self.config.point_counts)
        return (
            np.stack([cell_coverage(mask, frame) for mask in chosen]),
            frame.to_model_xyxy(np.stack([tight_box(mask.astype(bool)) for mask in chosen])),
            frame.to_model_xy(np.stack([random_points(mask.astype(bool), count, rng) for mask in chosen])),
        )


def _shown(item: TrainingImage, share: float, rng: np.random.Generator) -> TrainingImage:
    """Return the whole image or, with probability `share`, a window around one of its objects."""
    if rng.random() >= share:
        return item
    bbox_xywh = coco_mask.toBbox(item.rles[rng.integers(len(item.rles))])
    return cut_window(item, window_around(item.size_hw, bbox_xywh, rng))


def cell_coverage(mask: NDArray[np.uint8], frame: Frame) -> NDArray[np.float32]:
    """Return the part (S/4, S/4) of each cell of the decoder's grid that `mask` (H, W) of 0 and 1 covers."""
    height, width = frame.resized_hw
    smaller = height < mask.shape[0] and width <= mask.shape[1]
    square = np.zeros((frame.side, frame.side), np.uint8)
    square[:height, :width] = cv2.resize(
        mask * np.uint8(255), (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    cells = frame.side // MASK_STRIDE
    return np.asarray(cv2.resize(square, (cells, cells), interpolation=cv2.INTER_AREA), np.float32) / np.float32(255)


def _pools(sets: Sets, weights: dict[str, float], fit: Fit) -> tuple[list[list[TrainingImage]], NDArray[np.float64]]:
    """Return pools of images, within which all images come equally often, and the share of each pool in the batches."""
    if unknown := sorted(weights.keys() - sets.keys()):
        raise ConfigError(f"set_weights: expected names among {', '.join(sorted(sets))}, got {', '.join(unknown)}")
    usable = {name: _usable(sets[name], fit) for name in sorted(sets) if weights.get(name, 1.0) > 0}
    usable = {name: items for name, items in usable.items() if items}
    if not usable:
        raise AnnotationError(
            f"training sets {', '.join(sorted(sets))}: expected objects of at least {MIN_OBJECT_FRACTION:.1%} of the "
            "input in sets that weigh more than 0, got none"
        )
    if not weights:
        return [[item for items in usable.values() for item in items]], np.ones(1)
    return list(usable.values()), set_share(list(usable), weights)


def _usable(items: list[TrainingImage], fit: Fit) -> list[TrainingImage]:
    kept = []
    for item in items:
        areas = coco_mask.area(item.rles)
        square = max(item.size_hw) ** 2 if fit == "pad" else prod(item.size_hw)
        smallest = MIN_OBJECT_FRACTION * square
        rles: list[dict[str, Any]] = [rle for rle, area in zip(item.rles, areas, strict=True) if area >= smallest]
        if rles:
            kept.append(replace(item, rles=rles))
    return kept


def _schedule(
    pools: list[list[TrainingImage]], share: NDArray[np.float64], count: int, seed: int
) -> list[TrainingImage]:
    """Draw `count` images: pools by their share, and in a pool every image once before any comes again."""
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
