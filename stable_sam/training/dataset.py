"""Training samples from COCO folders: a folder of sets, each with `images/` and `instances.json`.

A sample is a function of (seed, step) alone, so a run that is resumed sees what it would have seen.
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
from stable_sam.modeling.nano import MASK_STRIDE
from stable_sam.prompt_noise import random_points
from stable_sam.training.paste import paste_object

MIN_OBJECT_FRACTION = 0.001
"""Smaller objects, in parts of the square input, are a few cells of the mask: nothing to learn a shape from."""
WINDOW_SCALES = 1.5, 8.0
"""Side of a window around an object, in longest sides of its box."""
SMALLEST_WINDOW = 48
"""Pixels of the picture: nearer than that there is nothing more to see."""
MIN_VISIBLE_PART = 0.4
"""An object of which a window shows a smaller part is not asked for."""
SAMPLE_TRIES = 1000
"""Pictures that may turn out without an object of that size, one after the other, before the data is refused."""
SAM_PIXEL_MEAN = (124, 116, 104)
"""segment_anything's pixel_mean, rounded."""


Window = tuple[int, int, int, int]
"""Part of a picture: x, y, width, height in its pixels."""


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """A picture of a training set, or a window of it, and the masks people drew on it."""

    path: Path
    picture_hw: tuple[int, int]
    rles: list[dict[str, Any]]
    """Compressed RLE of `size_hw`."""
    window: Window | None = None
    """None: the whole picture."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of what is shown."""
        return self.picture_hw if self.window is None else (self.window[3], self.window[2])


@dataclass(frozen=True, slots=True)
class Batch:
    """B images with M objects each; coordinates in pixels of the S x S input.

    images (B, 3, S, S) uint8; coverage (B, M, S/4, S/4): part of each cell the object covers; boxes (B, M, 4) XYXY;
    points (B, M, N, 2), drawn uniformly from the object.
    """

    images: Tensor
    coverage: Tensor
    boxes: Tensor
    points: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(*(part.to(device) for part in (self.images, self.coverage, self.boxes, self.points)))


def read_training_sets(data_dir: Path) -> dict[str, list[TrainingImage]]:
    """Read every `<set>/instances.json` under `data_dir`.

    Raises `AnnotationError` when there is none, or one is broken or without masks, and `ImageError` for a picture that
    is not there.
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
        if not isinstance(rle, dict) or not isinstance(rle["counts"], str) or tuple(rle["size"]) != sizes[image_id]:
            name = annotation.get("id", "without id")
            raise AnnotationError(f"{file}: annotation {name}: expected a compressed RLE mask of its picture's size")
        rles.setdefault(image_id, []).append(rle)
    if not rles:
        raise AnnotationError(f"{file}: expected at least one mask, got none")
    return [
        TrainingImage(_picture(file, image["file_name"]), sizes[image["id"]], rles[image["id"]])
        for image in coco["images"]
        if image["id"] in rles
    ]


def _picture(file: Path, file_name: str) -> Path:
    path = image_path(file, file_name)
    if not path.exists():
        raise ImageError(f"{file}: {file_name}: expected a training picture, found no file")
    return path


def set_share(names: list[str], weights: dict[str, float]) -> NDArray[np.float64]:
    """Share (len(names),) of each set in the samples; raises `ConfigError` when every weight is 0."""
    share = np.array([weights.get(name, 1.0) for name in names])
    if not share.any():
        raise ConfigError(f"set_weights: expected a positive share for one of {', '.join(names)}, got 0 for all")
    return share / share.sum()  # type: ignore[no-any-return]


class TrainingBatches:
    """Batches by step number: sets by weight, then pictures, then objects, each uniformly."""

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
        """`weights`: share of each set, 1 where not named; raises `ConfigError` for one that is not there. `paste`:
        part of the samples with an object of another picture laid over them."""
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
    """(H, W, 3) RGB of `item.size_hw`; raises `ImageError` when it cannot be read or has not the annotated size."""
    picture = read_picture(item.path)
    if picture.shape[:2] != item.picture_hw:
        (height, width), (h, w) = item.picture_hw, picture.shape[:2]
        raise ImageError(f"{item.path}: expected {width} x {height} pixels as annotated, got {w} x {h}")
    if item.window is None:
        return picture
    x, y, w, h = item.window
    return np.ascontiguousarray(picture[y : y + h, x : x + w])


def cut_window(item: TrainingImage, window: Window) -> TrainingImage:
    """`window` of a whole picture, with the objects that are still mostly visible in it."""
    x, y, w, h = window
    cut = coco_mask.decode(item.rles)[y : y + h, x : x + w]
    visible = cut.sum((0, 1)) >= MIN_VISIBLE_PART * coco_mask.area(item.rles)
    rles = coco_mask.encode(np.asfortranarray(cut[:, :, visible]))
    return replace(item, rles=rles, window=window)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB; raises `ImageError` when there is no readable picture."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise ImageError(f"{path}: expected a training picture, got no file or none that can be decoded")
    return picture.astype(np.uint8, copy=False)


def random_window(size_hw: tuple[int, int], bbox_xywh: NDArray[np.float64], rng: np.random.Generator) -> Window:
    """The part of a picture that is shown.

    All of it in two samples of five, a random crop in one, and in two a square around the object of `bbox_xywh`, so
    that a small object is seen as large as a tile shows it, and every object at many sizes.
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
    """A square window of a random size with all of the box at a random place in it, cut to the picture."""
    height, width = size_hw
    left, top, box_w, box_h = bbox_xywh
    side = max(max(box_w, box_h) * np.exp(rng.uniform(*np.log(WINDOW_SCALES))), SMALLEST_WINDOW)
    x, y = (max(0, int(low - rng.uniform(0, side - length))) for low, length in ((left, box_w), (top, box_h)))
    return x, y, int(min(side + 1, width - x)), int(min(side + 1, height - y))


def cut_masks(masks: NDArray[np.uint8], window: Window, size: int, flip: bool) -> list[NDArray[np.bool_]]:
    """The objects (H, W, K) that are still mostly visible in the window, each (size, size), padded bottom right."""
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


def cut_image(picture: NDArray[np.uint8], window: Window, size: int, flip: bool) -> NDArray[np.uint8]:
    """The window of the picture, longest side `size`, not padded."""
    x, y, w, h = window
    return _resize(np.ascontiguousarray(picture[y : y + h, x : x + w]), size, flip)


def _resize(array: NDArray[np.uint8], size: int, flip: bool) -> NDArray[np.uint8]:
    h, w = array.shape[:2]
    scale = size / max(h, w)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(array, (max(1, round(w * scale)), max(1, round(h * scale))), interpolation=method)
    return np.ascontiguousarray(resized[:, ::-1]) if flip else resized  # type: ignore[return-value]


def pad_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Pad (h, w, 3) bottom right to (size, size, 3) with SAM's pixel mean, which its normalisation takes to SAM's
    zero."""
    padded = np.full((size, size, 3), SAM_PIXEL_MEAN, dtype=np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def _pad(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.pad(mask, [(0, size - mask.shape[0]), (0, size - mask.shape[1])])


def augment_colors(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random contrast, brightness, saturation; gray in a tenth of the samples."""
    table = np.clip((np.arange(256) - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-30, 30), 0, 255).astype(
        np.uint8
    )
    out = cv2.LUT(image, table)
    saturation = 0.0 if rng.random() < 0.1 else rng.uniform(0.6, 1.4)
    gray = cv2.cvtColor(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(out, saturation, gray, 1.0 - saturation, 0.0)  # type: ignore[return-value]
