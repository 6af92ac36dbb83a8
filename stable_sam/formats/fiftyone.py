"""FiftyOne's own format on disk (`fiftyone.types.FiftyOneDataset`): `metadata.json`, `samples.json`, `images/`."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from stable_sam.formats.export_records import Add, ExportImage, ExportObject, Target
from stable_sam.rle import decode_mask
from stable_sam.storage.json_lists import json_lists
from stable_sam.storage.uris import join

_INSIDE = 1e-3
"""Part of a pixel by which boxes begin inside their first pixel."""


@contextmanager
def write_fiftyone(target: Target) -> Iterator[Add]:
    """Write a sample for each image; its field `masks` holds detections with instance mask, confidence and prompt_id.

    The metadata name no version of FiftyOne, so every FiftyOne from 0.8 on imports the files and completes them.
    """
    info = {key: value for key, value in target.header.items() if value is not None}
    target.write("metadata.json", json.dumps({"media_type": "image", "info": info}, indent=1))
    with json_lists(join(target.uri, "samples.json"), {}, ("samples",)) as (sample,):

        def add(image: ExportImage, data: bytes | None) -> list[dict[str, Any]]:
            height, width = image.size_hw
            sample(
                {
                    "filepath": image.reference,
                    "_media_type": "image",
                    "tags": [],
                    "metadata": {"_cls": "ImageMetadata", "width": width, "height": height},
                    "image_uri": image.image_uri,
                    "masks": {"_cls": "Detections", "detections": [_detection(item) for item in image.objects]},
                }
            )
            return [{} for _ in image.objects]

        yield add


def _detection(item: ExportObject) -> dict[str, Any]:
    (height, width), (left, top, w, h) = item.mask.size_hw, item.mask.bbox_xywh
    mask = decode_mask(item.mask.size_hw, item.mask.counts)[int(top) : int(top + h), int(left) : int(left + w)]
    array = io.BytesIO()
    np.save(array, np.ascontiguousarray(mask), allow_pickle=False)
    packed = base64.b64encode(zlib.compress(array.getvalue())).decode("ascii")
    return {
        "_cls": "Detection",
        "label": item.category.name,
        # FiftyOne multiplies with the image's size and cuts to whole pixels, where 0.29 * 100 would become 28.
        "bounding_box": [(left + _INSIDE) / width, (top + _INSIDE) / height, w / width, h / height],
        "mask": {"$binary": {"base64": packed, "subType": "00"}},
        "confidence": item.score,
        "prompt_id": item.prompt_id,
        **item.details,
    }
