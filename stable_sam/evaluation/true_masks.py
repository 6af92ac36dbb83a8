"""Read true masks, which people drew, from folders with `images/` and `instances.json` (COCO instances)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stable_sam.errors import AnnotationError
from stable_sam.evaluation.metrics import Mask
from stable_sam.formats.source_annotation import id_text
from stable_sam.rle import encode_segmentation, rle


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthObject:
    """One object with its true mask."""

    annotation_id: str
    """Id in the file, made unique within the set."""
    category: str
    """Name of the category; its id where the file names no categories, and empty where there is none."""
    category_id: str | None = None
    rle: dict[str, Any]
    """The true mask as COCO compressed RLE."""
    detected_xyxy: tuple[float, float, float, float] | None = None
    """Box of a detector that was matched to this object, in pixels of the image; None when there is none."""

    def mask(self) -> Mask:
        """Return the true mask (H, W)."""
        return np.ascontiguousarray(coco_mask.decode(self.rle)).astype(np.bool_)

    def box_xyxy(self) -> NDArray[np.float64]:
        """Return the tight box (4,) XYXY of the true mask, along the outer edges of its pixels."""
        x, y, width, height = coco_mask.toBbox(self.rle)
        return np.array([x, y, x + width, y + height], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthImage:
    """An image with the objects that count."""

    path: Path
    name: str
    """The image's file_name in the file."""
    image_id: str = ""
    size_hw: tuple[int, int]
    objects: tuple[TruthObject, ...]
    asked: frozenset[str] | None = None
    """Annotation ids of the objects to evaluate, when they are a sample; None evaluates all. The others are
    neighbours."""

    def is_asked(self, item: TruthObject) -> bool:
        """Whether `item` is to be evaluated."""
        return self.asked is None or item.annotation_id in self.asked


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionCounts:
    """How many detections of one set's images were matched to true objects."""

    matched: int
    """Detections that were matched to a true object, whether or not the object is in the sample."""
    unmatched: int
    """Other detections on evaluated images: false ones, second ones of an object, and those of objects that do not
    count."""
    other_pictures: int
    """Detections on images that are not evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthSet:
    """The images and objects of one `instances.json`."""

    name: str
    images: tuple[TruthImage, ...]
    crowd: int
    """Number of annotations with iscrowd, which are groups and not objects."""
    small: int
    """Number of annotations with an empty mask or one below the smallest area, which do not count."""
    other_images: tuple[TruthImage, ...] = ()
    """Images of the file that are not evaluated, without their objects."""
    category_ids: frozenset[str] = frozenset()
    """Ids of all categories that the file lists or uses."""
    detections: DetectionCounts | None = None
    """None when no detections were read."""

    @property
    def objects(self) -> int:
        """Return the number of objects to evaluate."""
        return sum(image.is_asked(item) for image in self.images for item in image.objects)


def read_truth(data_dir: Path, *, min_area_fraction: float = 0.0, limit: int | None = None) -> list[TruthSet]:
    """Read `data_dir/instances.json`, or that of every subfolder where there is none.

    min_area_fraction: smallest object that counts, as a fraction of its image. limit: number of images of each set,
    evenly spread; None takes all. Images without an object that counts are left out.
    Raises `AnnotationError` with the file and the record for anything that is not COCO instances with masks.
    """
    files = [data_dir / "instances.json"]
    if not files[0].exists():
        files = sorted(data_dir.glob("*/instances.json"))
    if not files:
        raise AnnotationError(f"{data_dir}: expected instances.json, or subfolders with one, found none")
    return [_read_set(file, min_area_fraction, limit) for file in files]


def image_path(instances_file: Path, file_name: str) -> Path:
    """Return the path of an image of a COCO file.

    File names start at the folder of the JSON file or at its folder `images/`: COCO does not say where, and both are in
    use.
    """
    direct = instances_file.parent / file_name
    return direct if direct.exists() else instances_file.parent / "images" / file_name


def _read_set(file: Path, min_area_fraction: float, limit: int | None) -> TruthSet:
    images, annotations, categories = _read_coco(file)
    by_id: dict[Any, TruthImage] = {}
    for number, record in enumerate(images):
        try:
            image = TruthImage(
                path=image_path(file, record["file_name"]),
                name=record["file_name"],
                image_id=id_text(record["id"]) or "",
                size_hw=(int(record["height"]), int(record["width"])),
                objects=(),
            )
            by_id[record["id"]] = image
        except (KeyError, TypeError, ValueError) as error:
            raise AnnotationError(
                f"{file}: images[{number}]: expected id, file_name, height, width; {_say(error)}"
            ) from None

    objects: dict[Any, list[TruthObject]] = {}
    known: set[str] = set()
    crowd = small = 0
    for number, record in enumerate(annotations):
        try:
            name, image_id = str(record["id"]), record["image_id"]
            image = by_id[image_id]
            if record.get("iscrowd"):
                crowd += 1
                continue
            mask = encode_segmentation(record["segmentation"], image.size_hw)
            category = str(categories.get(record.get("category_id"), record.get("category_id", "")))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            expected = "id, image_id of an image in the file, segmentation as polygons or RLE"
            raise AnnotationError(f"{file}: annotations[{number}]: expected {expected}; {_say(error)}") from None
        if name in known:
            name = f"{name}#{number}"  # some files count their ids anew for every image
        known.add(name)
        if mask.area == 0 or mask.area < min_area_fraction * image.size_hw[0] * image.size_hw[1]:
            small += 1
            continue
        category_id = id_text(record.get("category_id"))
        objects.setdefault(image_id, []).append(
            TruthObject(
                annotation_id=name, category=category, category_id=category_id, rle=rle(mask.size_hw, mask.counts)
            )
        )

    chosen = _spread([image_id for image_id in by_id if image_id in objects], limit)
    category_ids = [*categories, *(record.get("category_id") for record in annotations)]
    return TruthSet(
        name=file.parent.resolve().name,
        images=tuple(replace(by_id[image_id], objects=tuple(objects[image_id])) for image_id in chosen),
        crowd=crowd,
        small=small,
        other_images=tuple(by_id[image_id] for image_id in by_id.keys() - set(chosen)),
        category_ids=frozenset(filter(None, map(id_text, category_ids))),
    )


def _read_coco(file: Path) -> tuple[list[Any], list[Any], dict[Any, Any]]:
    """Images, annotations, and the names of the categories by id, which a file may leave out."""
    try:
        coco = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnnotationError(f"{file}: cannot read: {error.strerror}") from None
    except ValueError as error:
        raise AnnotationError(f"{file}: not valid JSON: {error}") from None
    images, annotations = (coco.get(key) if isinstance(coco, dict) else None for key in ("images", "annotations"))
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise AnnotationError(f"{file}: expected COCO instances, an object with the lists images and annotations")
    categories = coco.get("categories") or []
    try:
        names = {category["id"]: category["name"] for category in categories}
    except (KeyError, TypeError) as error:
        raise AnnotationError(f"{file}: categories: expected id and name of each; {_say(error)}") from None
    return images, annotations, names


def _spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    if limit is None or limit >= len(items):
        return list(items)
    return [items[int(position)] for position in np.arange(limit) * len(items) / limit]


def _say(error: Exception) -> str:
    return f"{error.args[0]!r} is missing or unknown" if isinstance(error, KeyError) else str(error)
