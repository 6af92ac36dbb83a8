"""Writes COCO instances (`instances.json` or as a `Layout` says) and COCO detection results (`results.json`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stable_sam.formats.export_records import Add, ExportImage, ExportObject, Layout, Target
from stable_sam.formats.polygons import polygon_parts
from stable_sam.rle import EncodedMask, decode_mask
from stable_sam.storage.json_lists import json_lists
from stable_sam.storage.uris import join

OWN_KEY = "stable_sam"
"""Key under which exports keep facts of their own in files of other tools."""
LAYOUTS: Mapping[str, Layout] = {
    # With a folder for its subset datumaro also reads images whose own folder is called `default`.
    "datumaro": Layout(annotations="annotations/instances_default.json", images="images/default"),
    "fiftyone": Layout(annotations="labels.json", images="data"),
}
"""Layouts of COCO data sets by the tool that finds the files without being told where they are."""


@contextmanager
def write_instances(target: Target) -> Iterator[Add]:
    """Write masks as compressed RLE, or as polygons those without holes, because a COCO polygon cannot have a hole."""
    numbers = _numbers(target)
    head = {
        "info": {"description": "Masks of stable-sam", OWN_KEY: target.header},
        "licenses": [],
        "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in numbers.items()],
    }
    uri = join(target.uri, target.layout.annotations)
    with json_lists(uri, head, ("annotations", "images")) as (add_annotation, add_image):

        def add(image: ExportImage, data: bytes | None) -> list[dict[str, Any]]:
            for item in image.objects:
                add_annotation(_annotation(image, item, numbers[item.category.name], target.polygons))
            height, width = image.size_hw
            add_image(
                {
                    "id": image.number,
                    "file_name": image.name,
                    "height": height,
                    "width": width,
                    # An annotation that a reviewer deletes leaves no other trace in the file.
                    OWN_KEY: {"sent": {item.prompt_id: item.revision for item in image.objects}},
                }
            )
            return [{"id": item.number} for item in image.objects]

        yield add


@contextmanager
def write_results(target: Target) -> Iterator[Add]:
    """Write detection results as COCO's evaluation takes them: masks as compressed RLE with a score."""
    with json_lists(join(target.uri, "results.json"), None, ("results",)) as (result,):

        def add(image: ExportImage, data: bytes | None) -> list[dict[str, Any]]:
            for item in image.objects:
                result(
                    {
                        "image_id": image.number,
                        "category_id": item.category.number,
                        "bbox": list(item.mask.bbox_xywh),
                        "segmentation": _rle(item.mask),
                        "score": 1.0 if item.score is None else item.score,
                        "prompt_id": item.prompt_id,
                    }
                )
            return [{} for _ in image.objects]

        yield add


def _numbers(target: Target) -> dict[str, int]:
    """Return the id of each name: the first where the source has several, because tools merge or refuse them."""
    numbers: dict[str, int] = {}
    for category in target.categories:
        numbers.setdefault(category.name, category.number)
    return numbers


def _annotation(image: ExportImage, item: ExportObject, category_id: int, polygons: bool) -> dict[str, Any]:
    return {
        "id": item.number,
        "image_id": image.number,
        "category_id": category_id,
        "iscrowd": int(item.iscrowd),
        "bbox": list(item.mask.bbox_xywh),
        "area": item.mask.area,
        # By COCO's rules the mask of a crowd is RLE.
        "segmentation": (polygons and not item.iscrowd and _polygons(item.mask)) or _rle(item.mask),
        "score": item.score,
        "prompt_id": item.prompt_id,
        **item.details,
    }


def _polygons(mask: EncodedMask) -> list[list[float]] | None:
    parts = polygon_parts(decode_mask(mask.size_hw, mask.counts))
    return None if any(part.holes for part in parts) else [part.outer.ravel().tolist() for part in parts]


def _rle(mask: EncodedMask) -> dict[str, Any]:
    return {"size": list(mask.size_hw), "counts": mask.counts}
