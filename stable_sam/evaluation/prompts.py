"""The kinds of weak prompts: those of the paper's tables, and those that people and detectors give.

    gt-box            the tight box
    noisy-box-<s>     HQ-SAM's uniform noise of scale s on centre and size; noisy-box is scale 0.4
    shifted-box       the tight box moved, its size kept: by 10 to 30 % of its sides in both directions
    truncated-box     one side cut off: 15 to 50 % of the box at its left, top, right or bottom
    loose-box         every side 10 to 50 % of the box further out, as by a hurried annotator
    detector-box      the tight box as an object detector finds it (see `DETECTOR_ERROR`)
    two-objects-box   the box around the object and the nearest other one of the image; the object is the target
    <n>-points        n points, uniform over the mask

These are drawn from a true mask. Two kinds need more than the mask:

    worst-box         the worst box that a careful person might draw, searched for each method
                      (see `stable_sam.evaluation.worst_box`)
    detector-boxes    what a real detector found, read from a file (see `stable_sam.evaluation.detections`)

All boxes are clipped to the image, as those of annotators and detectors are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stable_sam.errors import ConfigError
from stable_sam.evaluation.metrics import Mask, tight_window
from stable_sam.prompt_noise import MIN_BOX_SIDE, clip_boxes, noisy_box, random_points

NOISE_SCALE = 0.4
"""Noise scale of `noisy-box`: HQ-SAM's default for noisy boxes, because the paper does not state its own."""
SHIFT = 0.1, 0.3
TRUNCATED = 0.15, 0.5
LOOSE = 0.1, 0.5
DETECTOR_ERROR = 0.06
"""Laplace scale of each side's error, in widths or heights of the box. With it, 72 % of the boxes that
are right at IoU 0.5 are right at 0.75; for Faster R-CNN R50-FPN on COCO, AP75 / AP50 is 0.70. The distribution is a
Laplace one because the errors of detectors have heavy tails. The mean IoU of the boxes is 0.80."""
DETECTED = 0.5
"""Smallest IoU of a `detector-box` with the true box: a box below it would be a miss, and is drawn again."""
GT_BOX, TWO_OBJECTS_BOX = "gt-box", "two-objects-box"
WORST_BOX, DETECTOR_BOXES = "worst-box", "detector-boxes"
_EXPECTED = (
    "gt-box, noisy-box, noisy-box-<scale>, shifted-box, truncated-box, loose-box, detector-box, two-objects-box, "
    "worst-box, detector-boxes or <n>-point(s)"
)

Boxes = NDArray[np.float64]
"""(B, 4) XYXY in pixels of the upright image, or one box (4,) where a docstring says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptKind:
    """A kind of weak prompt, such as `gt-box`, `noisy-box` (scale 0.4), `noisy-box-0.2`, `loose-box` or `3-points`."""

    name: str
    noise: float = NOISE_SCALE
    """Noise scale of a `noisy-box`."""
    points: int = 0
    """Number of points of a prompt; 0 for a box."""

    @classmethod
    def parse(cls, name: str) -> Self:
        """Make a kind of its name; raises `ConfigError` for a name that is no kind of prompt."""
        if name in (GT_BOX, TWO_OBJECTS_BOX, WORST_BOX, DETECTOR_BOXES) or name in _REALISTIC:
            return cls(name=name)
        if match := re.fullmatch(r"noisy-box(?:-(\d?\.\d+|1|1\.0))?", name):
            scale = float(match[1]) if match[1] else NOISE_SCALE
            if 0 < scale <= 1:
                return cls(name=name, noise=scale)
        if (match := re.fullmatch(r"([1-9]\d?)-points?", name)) is not None:
            return cls(name=name, points=int(match[1]))
        raise ConfigError(f"prompts: expected {_EXPECTED}, got {name!r}")

    @property
    def is_noisy(self) -> bool:
        """Whether this kind is a box that differs from the true one by any sort of noise."""
        return not self.points and self.name not in (GT_BOX, TWO_OBJECTS_BOX)

    @property
    def is_random(self) -> bool:
        """Whether several different prompts of this kind can be drawn for an object."""
        return self.name not in (GT_BOX, TWO_OBJECTS_BOX, WORST_BOX, DETECTOR_BOXES)

    def draw(
        self, mask: Mask, rng: np.random.Generator, count: int, nearest_xyxy: Boxes | None = None
    ) -> NDArray[np.float64] | None:
        """Draw `count` prompts for a non-empty mask (H, W), or the only one of a kind that is not random.

        nearest_xyxy: tight box (4,) of the nearest other object, for `two-objects-box`. Returns boxes (B, 4) XYXY or
        points (B, N, 2) in pixels of the mask, or None for `two-objects-box` without another object. Raises
        `ConfigError` for `worst-box` and `detector-boxes`, which cannot be drawn from a mask alone.
        """
        if self.name in (WORST_BOX, DETECTOR_BOXES):
            raise ConfigError(
                f"prompts: expected a kind that a mask alone gives, got {self.name!r}, which only `evaluate` takes"
            )
        if self.points:
            return random_points(mask, count * self.points, rng).reshape(count, self.points, 2)
        box = tight_box(mask)
        if self.name == GT_BOX:
            return box[None]
        if self.name == TWO_OBJECTS_BOX:
            return None if nearest_xyxy is None else _union(box, nearest_xyxy)[None]
        image_hw = (mask.shape[0], mask.shape[1])
        if self.name in _REALISTIC:
            return _REALISTIC[self.name](box, image_hw, rng, count)
        return noisy_box(box, self.noise, image_hw, rng, count)


def tight_box(mask: Mask) -> NDArray[np.float64]:
    """Return the tight box (4,) XYXY of a non-empty mask (H, W), along the outer edges of its pixels."""
    window = tight_window(mask)
    if window is None:
        raise ValueError("an empty mask has no box")
    rows, columns = window
    return np.array([columns.start, rows.start, columns.stop, rows.stop], dtype=np.float64)


def fill_box(box_xyxy: Boxes, image_hw: tuple[int, int]) -> Mask:
    """Return the mask (H, W) of the pixels whose centres lie in a box (4,) XYXY."""
    mask = np.zeros(image_hw, dtype=np.bool_)
    left, top, right, bottom = np.ceil(np.maximum(box_xyxy, 0) - 0.5).astype(int)
    mask[top:bottom, left:right] = True
    return mask


def prompt_rng(seed: int, *key: str) -> np.random.Generator:
    """Return a generator that depends only on `seed` and on `key`, the names of what is drawn, whatever came before."""
    digest = hashlib.sha256("\x1f".join(key).encode()).digest()
    return np.random.default_rng((seed, int.from_bytes(digest[:8], "little")))


def box_iou(boxes_xyxy: Boxes, true_xyxy: Boxes) -> NDArray[np.float64]:
    """Return the IoU (B,) of boxes (B, 4) with one box (4,)."""
    low, high = np.maximum(boxes_xyxy[:, :2], true_xyxy[:2]), np.minimum(boxes_xyxy[:, 2:], true_xyxy[2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    iou: NDArray[np.float64] = common / (_area(boxes_xyxy) + _area(true_xyxy) - common)
    return iou


def _shifted(box: Boxes, image_hw: tuple[int, int], rng: np.random.Generator, count: int) -> Boxes:
    move = rng.uniform(*SHIFT, size=(count, 2)) * rng.choice((-1.0, 1.0), size=(count, 2)) * (box[2:] - box[:2])
    return clip_boxes(box + np.tile(move, 2), image_hw)


def _truncated(box: Boxes, image_hw: tuple[int, int], rng: np.random.Generator, count: int) -> Boxes:
    side = rng.integers(0, 4, size=count)
    extent = np.tile(box[2:] - box[:2], 2)[side]
    cut = np.minimum(rng.uniform(*TRUNCATED, size=count) * extent, extent - MIN_BOX_SIDE)
    boxes = np.tile(box, (count, 1))
    boxes[np.arange(count), side] += np.where(side < 2, cut, -cut)
    return clip_boxes(boxes, image_hw)


def _loose(box: Boxes, image_hw: tuple[int, int], rng: np.random.Generator, count: int) -> Boxes:
    grown = rng.uniform(*LOOSE, size=(count, 4)) * np.tile(box[2:] - box[:2], 2)
    return clip_boxes(box + grown * (-1, -1, 1, 1), image_hw)


def _detected(box: Boxes, image_hw: tuple[int, int], rng: np.random.Generator, count: int) -> Boxes:
    found: list[Boxes] = []
    while len(found) < count:
        error = rng.laplace(0, DETECTOR_ERROR, size=(1, 4)) * np.tile(box[2:] - box[:2], 2)
        drawn = clip_boxes(box + error, image_hw)
        if box_iou(drawn, box)[0] >= DETECTED:
            found.append(drawn)
    return np.concatenate(found)


def _union(box: Boxes, other: Boxes) -> Boxes:
    return np.concatenate((np.minimum(box[:2], other[:2]), np.maximum(box[2:], other[2:])))


def _area(boxes: Boxes) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return area


_REALISTIC: Mapping[str, Callable[[Boxes, tuple[int, int], np.random.Generator, int], Boxes]] = MappingProxyType(
    {"shifted-box": _shifted, "truncated-box": _truncated, "loose-box": _loose, "detector-box": _detected}
)
