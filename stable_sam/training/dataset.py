"""Training samples from a folder of COCO sets, each with `images/` and `instances.json`.

A sample depends on the seed and the step alone, so that a resumed training sees the samples that it would have seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from stable_sam.errors import AnnotationError, ConfigError, ImageError
from stable_sam.evaluation.prompts import tight_box
from stable_sam.evaluation.true_masks import image_path
from stable_sam.images.orientation import size_problem
from stable_sam.images.size import stored_size_of
from stable_sam.modeling.bases.base import MASK_STRIDE
from stable_sam.prompt_noise import random_points
from stable_sam.records import Window
from stable_sam.rle import checked_counts
from stable_sam.training.paste import paste_object
from stable_sam.training.windows import (
    MIN_OBJECT_FRACTION,
    MIN_VISIBLE_PART,
    augment_colors,
    cut_image,
    cut_masks,
    pad_image,
    random_window,
)

SAMPLE_TRIES = 1000
"""Number of images in a row that may lack an object of at least `MIN_OBJECT_FRACTION` before the data is refused."""


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """An image of a training set, or a window of it, and the masks that people drew on it."""

    path: Path
    image_hw: tuple[int, int]
    """Height and width of the whole image in pixels."""
    rles: list[dict[str, Any]]
    """Masks as compressed COCO RLE of `size_hw`."""
    window: Window | None = None
    """Window of the image that is shown; None for the whole image."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, in pixels, of the window or of the whole image."""
        return self.image_hw if self.window is None else (self.window[3], self.window[2])


@dataclass(frozen=True, slots=True)
class Batch:
    """B images with M objects each; coordinates are in pixels of the S x S input."""

    images: Tensor
    """Images (B, 3, S, S), RGB, uint8."""
    coverage: Tensor
    """Part of each cell that the object covers, (B, M, S/4, S/4), from 0 to 1."""
    boxes: Tensor
    """Boxes (B, M, 4) XYXY, tight around the objects."""
    points: Tensor
    """Points xy (B, M, N, 2), drawn uniformly from the objects."""

    def to(self, device: torch.device) -> Batch:
        """Return this batch on `device`."""
        return Batch(*(part.to(device) for part in (self.images, self.coverage, self.boxes, self.points)))


def read_training_sets(data_dir: Path) -> dict[str, list[TrainingImage]]:
    """Read every `<set>/instances.json` under `data_dir` and return the sets by name.

    Raises `AnnotationError` when there is no such file, or one is broken or has no masks, and `ImageError` for an image
    file that is missing.
    """
    sets: dict[str, list[TrainingImage]] = {}
    for file in sorted(data_dir.glob("*/instances.json")):
        try:
            sets[file.parent.name] = _read_set(file)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise AnnotationError(f"{file}: expected COCO instances with RLE masks, got {error!r}") from None
    if not sets:
        raise AnnotationError(f"{data_dir}: expected <set>/instances.json and <set>/images/, found none")
    return sets


def _read_set(file: Path) -> list[TrainingImage]:
    coco = json.loads(file.read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    rles: dict[int, list[dict[str, Any]]] = {}
    for annotation in coco["annotations"]:
        rle, image_id = annotation["segmentation"], annotation["image_id"]
        name = annotation.get("id", "without id")
        if not isinstance(rle, dict) or not isinstance(rle["counts"], str) or tuple(rle["size"]) != sizes[image_id]:
            raise AnnotationError(f"{file}: annotation {name}: expected a compressed RLE mask of its image's size")
        try:
            checked_counts(rle["counts"], sizes[image_id])
        except ValueError as error:
            raise AnnotationError(f"{file}: annotation {name}: {error}") from None
        rles.setdefault(image_id, []).append(rle)
    if not rles:
        raise AnnotationError(f"{file}: expected at least one mask, got none")
    return [
        TrainingImage(_image_path(file, image["file_name"]), sizes[image["id"]], rles[image["id"]])
        for image in coco["images"]
        if image["id"] in rles
    ]


def _image_path(file: Path, file_name: str) -> Path:
    path = image_path(file, file_name)
    if not path.exists():
        raise ImageError(f"{file}: {file_name}: expected a training image, found no file")
    return path


def set_share(names: list[str], weights: dict[str, float]) -> NDArray[np.float64]:
    """Return the share (len(names),) of each set in the samples; a set without a weight has weight 1.

    Raises `ConfigError` when every weight is 0.
    """
    share = np.array([weights.get(name, 1.0) for name in names])
    if not share.any():
        raise ConfigError(f"set_weights: expected a positive share for one of {', '.join(names)}, got 0 for all")
    return share / share.sum()  # type: ignore[no-any-return]


class TrainingBatches:
    """Batches by step number: each sample draws a set by weight, then an image and objects uniformly."""

    def __init__(
        self,
        sets: dict[str, list[TrainingImage]],
        weights: dict[str, float],
        *,
        size: int,
        batch_images: int,
        objects: int,
        points: int,
        seed: int,
        paste: float = 0.0,
    ) -> None:
        """`size` is the side S of the input in pixels. A batch has `batch_images` images with `objects` objects each,
        and `points` points for each object. `weights` are the sets' weights, 1 for a set that is not named. `paste` is
        the share of the samples that get an object of another image pasted onto them.

        Raises `ConfigError` for a weight of a set that is not there.
        """
        self.names = sorted(sets)
        if unknown := sorted(weights.keys() - sets.keys()):
            raise ConfigError(f"set_weights: expected names among {', '.join(self.names)}, got {', '.join(unknown)}")
        self.share = set_share(self.names, weights)
        self.sets = sets
        self.size, self.batch_images, self.objects, self.points, self.seed = size, batch_images, objects, points, seed
        self.paste = paste

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        samples = [self._sample(rng) for _ in range(self.batch_images)]
        images, coverage, boxes, points = (np.stack(part) for part in zip(*samples, strict=True))
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(coverage),
            torch.from_numpy(boxes).float(), torch.from_numpy(points).float(),
        )  # fmt: skip

    def _sample(self, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        for _ in range(SAMPLE_TRIES):
            item = self._draw(rng)
            chosen = rng.permutation(len(item.rles))[: 2 * self.objects]
            window = random_window(item.size_hw, coco_mask.toBbox(item.rles[chosen[0]]), rng)
            masks = coco_mask.decode([item.rles[i] for i in chosen])
            flip = bool(rng.random() < 0.5)
            cut = cut_masks(masks, window, self.size, flip)
            if cut:
                break
        else:
            raise AnnotationError(
                f"training sets {', '.join(self.names)}: expected objects of at least {MIN_OBJECT_FRACTION:.1%} of "
                f"the input, got none in {SAMPLE_TRIES} tries"
            )
        image = augment_colors(cut_image(read_annotated(item), window, self.size, flip), rng)
        if rng.random() < self.paste:
            other = self._draw(rng)
            mask = coco_mask.decode(other.rles[rng.integers(len(other.rles))]).astype(bool)
            cut = paste_object(image, cut, augment_colors(read_annotated(other), rng), mask, rng)
        image = pad_image(image, self.size)
        picks = [cut[i % len(cut)] for i in range(self.objects)]
        points = [random_points(mask, self.points, rng) for mask in picks]
        boxes = [tight_box(mask) for mask in picks]
        cells = self.size // MASK_STRIDE
        coverage = [cv2.resize(m.astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA) for m in picks]
        return image, np.stack(coverage), np.stack(boxes), np.stack(points)

    def _draw(self, rng: np.random.Generator) -> TrainingImage:
        pool = self.sets[self.names[rng.choice(len(self.names), p=self.share)]]
        return pool[rng.integers(len(pool))]


def read_annotated(item: TrainingImage) -> NDArray[np.uint8]:
    """Return the RGB pixels (H, W, 3) of `item`, the whole image or its window.

    Raises `ImageError` when the image cannot be read or does not have the annotated size.
    """
    image = read_image(item.path)
    height, width = image.shape[:2]
    if (height, width) != item.image_hw:
        turn = stored_size_of(str(item.path))[1]
        raise ImageError(f"{item.path}: {size_problem(item.image_hw, (height, width), turn)}")
    if item.window is None:
        return image
    x, y, w, h = item.window
    return np.ascontiguousarray(image[y : y + h, x : x + w])


def cut_window(item: TrainingImage, window: Window) -> TrainingImage:
    """Cut `window` out of a whole image, with the objects of which it shows at least `MIN_VISIBLE_PART`."""
    x, y, w, h = window
    cut = coco_mask.decode(item.rles)[y : y + h, x : x + w]
    visible = cut.sum((0, 1)) >= MIN_VISIBLE_PART * coco_mask.area(item.rles)
    rles = coco_mask.encode(np.asfortranarray(cut[:, :, visible]))
    return replace(item, rles=rles, window=window)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as RGB (H, W, 3); raises `ImageError` when it is missing or cannot be decoded."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ImageError(f"{path}: expected a training image, got no file or one that cannot be decoded")
    return image.astype(np.uint8, copy=False)
