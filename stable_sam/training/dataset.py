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
from stable_sam.modeling.nano import MASK_STRIDE
from stable_sam.prompt_noise import random_points
from stable_sam.rle import checked_counts
from stable_sam.training.paste import paste_object

MIN_OBJECT_FRACTION = 0.001
"""Smallest object, as a part of the square input's area; a smaller one has too few mask cells to learn a shape from."""
WINDOW_SCALES = 1.5, 8.0
"""Smallest and largest side of a window around an object, in longest sides of its box."""
SMALLEST_WINDOW = 48
"""Smallest side of a window in pixels of the image; a closer view shows no more detail."""
MIN_VISIBLE_PART = 0.4
"""Smallest part of an object's area that a window must show for the object to be trained on."""
SAMPLE_TRIES = 1000
"""Number of images in a row that may lack an object of at least `MIN_OBJECT_FRACTION` before the data is refused."""
SAM_PIXEL_MEAN = (124, 116, 104)
"""`pixel_mean` of segment_anything, RGB, rounded."""


Window = tuple[int, int, int, int]
"""Part of an image: x, y, width and height in its pixels."""


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


def random_window(size_hw: tuple[int, int], bbox_xywh: NDArray[np.float64], rng: np.random.Generator) -> Window:
    """Draw the window of an image that a sample shows.

    It is the whole image in two samples of five, a random crop in one, and in two a square around the object of
    `bbox_xywh`. The squares show small objects as large as tiles do, and every object at many sizes.
    """
    height, width = size_hw
    kind = rng.random()
    if kind < 0.4:
        return 0, 0, width, height
    if kind < 0.6:
        zoom, aspect = rng.uniform(0.5, 1.0), np.exp(rng.uniform(-0.2, 0.2))
        w, h = width * zoom * aspect, height * zoom / aspect
        x, y = rng.uniform(0, max(width - w, 0)), rng.uniform(0, max(height - h, 0))
    else:
        return window_around(size_hw, bbox_xywh, rng)
    return int(x), int(y), int(min(max(w, 32), width - int(x))), int(min(max(h, 32), height - int(y)))


def window_around(size_hw: tuple[int, int], bbox_xywh: NDArray[np.float64], rng: np.random.Generator) -> Window:
    """Draw a square window of random size that holds the whole box at a random place, and clip it to the image."""
    height, width = size_hw
    left, top, box_w, box_h = bbox_xywh
    side = max(max(box_w, box_h) * np.exp(rng.uniform(*np.log(WINDOW_SCALES))), SMALLEST_WINDOW)
    x, y = (max(0, int(low - rng.uniform(0, side - length))) for low, length in ((left, box_w), (top, box_h)))
    return x, y, int(min(side + 1, width - x)), int(min(side + 1, height - y))


def cut_masks(masks: NDArray[np.uint8], window: Window, size: int, flip: bool) -> list[NDArray[np.bool_]]:
    """Cut K masks (H, W, K) to the window and resize them like `cut_image`, each padded to (size, size).

    Leaves out objects of which the window shows too little (`MIN_VISIBLE_PART`) or that are too small
    (`MIN_OBJECT_FRACTION`).
    """
    x, y, w, h = window
    result = []
    for index in range(masks.shape[2]):
        whole = int(masks[:, :, index].sum())
        part = np.ascontiguousarray(masks[y : y + h, x : x + w, index])
        if part.sum() < MIN_VISIBLE_PART * whole:
            continue
        resized = _pad(_resize(part * 255, size, flip), size) > 127
        if resized.sum() >= MIN_OBJECT_FRACTION * size**2:
            result.append(resized)
    return result


def cut_image(image: NDArray[np.uint8], window: Window, size: int, flip: bool) -> NDArray[np.uint8]:
    """Cut the window out of the image and resize its longest side to `size`; `flip` mirrors it left to right."""
    x, y, w, h = window
    return _resize(np.ascontiguousarray(image[y : y + h, x : x + w]), size, flip)


def _resize(array: NDArray[np.uint8], size: int, flip: bool) -> NDArray[np.uint8]:
    h, w = array.shape[:2]
    scale = size / max(h, w)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(array, (max(1, round(w * scale)), max(1, round(h * scale))), interpolation=method)
    return np.ascontiguousarray(resized[:, ::-1]) if flip else resized  # type: ignore[return-value]


def pad_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Pad (h, w, 3) at the bottom and right to (size, size, 3) with SAM's pixel mean, which normalisation maps to 0."""
    padded = np.full((size, size, 3), SAM_PIXEL_MEAN, dtype=np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def _pad(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.pad(mask, [(0, size - mask.shape[0]), (0, size - mask.shape[1])])


def augment_colors(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change contrast, brightness and saturation of an RGB image at random; a tenth of the images become gray."""
    table = np.clip((np.arange(256) - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-30, 30), 0, 255).astype(
        np.uint8
    )
    out = cv2.LUT(image, table)
    saturation = 0.0 if rng.random() < 0.1 else rng.uniform(0.6, 1.4)
    gray = cv2.cvtColor(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(out, saturation, gray, 1.0 - saturation, 0.0)  # type: ignore[return-value]
