"""Writes Label Studio's tasks with brush masks as predictions (`tasks.json`) and labelling interface (`config.xml`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import quoteattr

from stable_sam.formats.coco.write import OWN_KEY
from stable_sam.formats.export_records import Add, ExportImage, ExportObject, Target
from stable_sam.formats.labelstudio.brush_rle import encode_brush
from stable_sam.rle import decode_mask
from stable_sam.storage.json_lists import json_lists
from stable_sam.storage.uris import join

_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@contextmanager
def write_labelstudio(target: Target) -> Iterator[Add]:
    """Write a task for each image. Label Studio keeps the region ids, and `data.stable_sam` says what was sent."""
    target.write("config.xml", _interface(target.names))
    with json_lists(join(target.uri, "tasks.json"), None, ("tasks",)) as (task,):

        def add(image: ExportImage, data: bytes | None) -> list[dict[str, Any]]:
            regions = [_region_id(item.prompt_id) for item in image.objects]
            sent = {
                region: {"prompt_id": item.prompt_id, "revision": item.revision}
                for region, item in zip(regions, image.objects, strict=True)
            }
            scores = [item.score for item in image.objects if item.score is not None]
            prediction = {
                "model_version": str(target.header["model_id"]),
                # Label Studio sorts tasks by this score, and the least certain object is the one to look at.
                **({"score": min(scores)} if scores else {}),
                "result": [_region(region, image, item) for region, item in zip(regions, image.objects, strict=True)],
            }
            task(
                {
                    "data": {"image": image.reference, OWN_KEY: {"image_uri": image.image_uri, "sent": sent}},
                    "predictions": [prediction],
                }
            )
            return [{"id": region} for region in regions]

        yield add


def _region_id(prompt_id: str) -> str:
    return prompt_id if _PLAIN_ID.fullmatch(prompt_id) else hashlib.sha256(prompt_id.encode()).hexdigest()[:16]


def _region(region_id: str, image: ExportImage, item: ExportObject) -> dict[str, Any]:
    height, width = image.size_hw
    return {
        "id": region_id,
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        **({} if item.score is None else {"score": item.score}),
        "value": {
            "format": "rle",
            "rle": encode_brush(decode_mask(item.mask.size_hw, item.mask.counts)),
            "brushlabels": [item.category.name],
        },
    }


def _interface(names: list[str]) -> str:
    labels = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in names)
    return (
        "<View>\n"
        '  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}\n  </BrushLabels>\n'
        "</View>\n"
    )
