"""Measure what masks that people drew lose on the way to annotation tools and back.

    python benchmarks/round_trips.py --data DIR --markdown out/round_trips.md

DIR holds COCO folders with masks, `<set>/instances.json`. Every format is written and read back by the code that
`stable-sam export` and `import-review` run; polygons are also filled as other programs fill them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from stable_sam.evaluation.true_masks import TruthImage, read_truth
from stable_sam.formats.export_records import SENT, ExportCategory, ExportImage, ExportObject, Target
from stable_sam.formats.polygons import Part, Ring, one_ring, polygon_parts
from stable_sam.formats.registry import REVIEW_READERS as READERS
from stable_sam.formats.registry import WRITERS
from stable_sam.formats.review_files import open_files
from stable_sam.formats.review_records import collect
from stable_sam.rle import decode_mask, encode_mask
from stable_sam.storage.json_lists import json_lists

Mask = NDArray[np.bool_]
CATEGORY = ExportCategory(number=1, name="object", index=0)
HEADER = {"model_id": "people"}
TRIPS = {
    "COCO, RLE": ("coco", False),
    "COCO, polygons": ("coco", True),
    "Label Studio, brush": ("labelstudio", False),
    "CVAT, masks": ("cvat", False),
    "CVAT, polygons": ("cvat", True),
    "LabelMe, masks": ("labelme", False),
    "LabelMe, polygons": ("labelme", True),
    "PNG": ("png", False),
    "YOLO-seg": ("yolo", True),
}
"""Format, and whether as polygons (masks with holes stay masks)."""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="pictures of each set; all, if not given")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    images = [image for part in read_truth(arguments.data, limit=arguments.limit) for image in part.images]
    exported = [_export_image(number, image) for number, image in enumerate(images, 1)]
    masks = [decode_mask(item.mask.size_hw, item.mask.counts) for image in exported for item in image.objects]
    parts = [polygon_parts(mask) for mask in masks]
    rows = {
        f"{name}: written and imported": _trip(form, polygons, exported) for name, (form, polygons) in TRIPS.items()
    }
    for name, fill in FILLS.items():
        rows[name] = [_iou(mask, fill(mask, rings)) for mask, rings in zip(masks, parts, strict=True)]
    table = _table(rows, masks, parts, len(images))
    print(table)
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(table + "\n")


def _export_image(number: int, image: TruthImage) -> ExportImage:
    objects = tuple(
        ExportObject(
            prompt_id=f"{number}-{place}", number=1000 * number + place, revision=1, category=CATEGORY, iscrowd=False,
            mask=encode_mask(item.mask()), box_xyxy=None, score=None, details={},
        )
        for place, item in enumerate(image.objects)
    )  # fmt: skip
    return ExportImage(
        image_uri=f"/{number}.jpg", number=number, name=f"{number}.jpg", size_hw=image.size_hw, objects=objects,
        reference=f"images/{number}.jpg",
    )  # fmt: skip


def _trip(form: str, polygons: bool, images: Sequence[ExportImage]) -> list[float]:
    """IoU of each mask with what comes back; 0 for one that does not."""
    folder = Path(tempfile.mkdtemp())
    try:
        target = Target(uri=str(folder), categories=(CATEGORY,), polygons=polygons, header=HEADER, copies=True)
        with WRITERS[form].write(target) as add, json_lists(str(folder / SENT), {}, ("images",)) as (sent,):
            for image in images:
                entries = zip(image.objects, add(image, b""), strict=True)
                objects = [
                    {"prompt_id": item.prompt_id, "revision": 1, "mask": item.mask.counts, **place}
                    for item, place in entries
                ]
                sent({"image_uri": image.image_uri, "name": image.name, "size": list(image.size_hw), "sent": objects})
        if form == "labelstudio":
            _submit(folder / "tasks.json")
        answers, problems = collect(READERS[form](open_files(str(folder))))
    finally:
        shutil.rmtree(folder)
    if problems:
        print(f"{form}: {len(problems)} problems, the first: {problems[0]}")
    found = {answer.prompt_id: answer.mask for answer in answers}
    ious = []
    for item in (item for image in images for item in image.objects):
        mask = found.get(item.prompt_id)
        same = mask is not None and mask == item.mask
        ious.append(1.0 if same else 0.0 if mask is None else _iou(_decoded(item.mask), _decoded(mask)))
    return ious


def _submit(path: Path) -> None:
    """What Label Studio exports when annotators leave everything as it is."""
    tasks = json.loads(path.read_text())
    for task in tasks:
        task["annotations"] = [{"id": 1, "result": task["predictions"][0]["result"]}]
    path.write_text(json.dumps(tasks))


def _pycocotools(mask: Mask, parts: Sequence[Part]) -> Mask:
    return _coco_filled(mask, [part.outer for part in parts])


def _pillow(mask: Mask, parts: Sequence[Part]) -> Mask:
    picture = Image.new("1", mask.shape[::-1])
    for part in parts:
        ImageDraw.Draw(picture).polygon([tuple(corner) for corner in part.outer.tolist()], outline=1, fill=1)
    return np.array(picture)


def _ultralytics(mask: Mask, parts: Sequence[Part]) -> Mask:
    filled = np.zeros(mask.shape, np.uint8)
    return cv2.fillPoly(filled, [one_ring(list(parts)).astype(np.int32)], [1]) > 0


def _usual(mask: Mask, parts: Sequence[Part]) -> Mask:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return _coco_filled(mask, [contour[:, 0].astype(np.float64) for contour in contours if len(contour) > 2])


def _coco_filled(mask: Mask, rings: Sequence[Ring]) -> Mask:
    if not rings:
        return np.zeros(mask.shape, np.bool_)
    rles = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *mask.shape)
    return np.ascontiguousarray(coco_mask.decode(coco_mask.merge(rles))).astype(np.bool_)


FILLS: dict[str, Callable[[Mask, Sequence[Part]], Mask]] = {
    "our polygons without their holes, filled by pycocotools": _pycocotools,
    "our polygons without their holes, filled by Pillow (LabelMe)": _pillow,
    "our YOLO line, filled by OpenCV at whole pixels (Ultralytics)": _ultralytics,
    "for comparison: OpenCV's outer contours, filled by pycocotools": _usual,
}


def _table(rows: dict[str, list[float]], masks: Sequence[Mask], parts: Sequence[Sequence[Part]], images: int) -> str:
    holes = np.array([any(part.holes for part in rings) for rings in parts])
    several = np.array([len(rings) > 1 for rings in parts])
    title = (
        f"{len(masks):,} masks on {images} pictures; {holes.mean():.1%} of them have holes, "
        f"{several.mean():.1%} several parts."
    )
    lines = [
        title,
        "",
        "| way | mean IoU | lowest | the same mask | mean IoU of those with holes |",
        "|---|---|---|---|---|",
    ]
    lines += list(_lines(rows, holes))
    return "\n".join(lines)


def _lines(rows: dict[str, list[float]], holes: NDArray[np.bool_]) -> Iterator[str]:
    for name, ious in rows.items():
        values = np.array(ious)
        exact = f"{(values == 1).mean():.1%}"
        with_holes = f"{values[holes].mean():.4f}" if holes.any() else "-"
        yield f"| {name} | {values.mean():.4f} | {values.min():.3f} | {exact} | {with_holes} |"


def _decoded(mask: Any) -> Mask:
    return decode_mask(mask.size_hw, mask.counts)


def _iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


if __name__ == "__main__":
    main()
