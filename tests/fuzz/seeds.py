"""A small example of every format that is read; its first byte says which reader gets it.

i image   c annotations   p the same with keypoints   t YOLO labels   n their data.yaml   o Open Images boxes
r what came back of an export: format (FORMS), f for the tool's file or s for the list of what was sent, content
k calibration
"""

from __future__ import annotations

import io
import json
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stable_sam.formats.export_records import SENT, ExportCategory, ExportImage, ExportObject, Target
from stable_sam.formats.registry import REVIEW_READERS, WRITERS
from stable_sam.review.export import _sent
from stable_sam.rle import encode_mask
from stable_sam.storage.json_lists import json_lists

BOX = [1.0, 2.0, 6.0, 5.0]
YOLO = b"0 0.5 0.5 0.2 0.5\n1 0.5 0.5 0.2 0.5 0.75\n0 0.1 0.2 0.3 0.2 0.3 0.4\n"
PICTURES = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
FORMS = {str(number).encode(): name for number, name in enumerate(REVIEW_READERS)}
VOC = b"<annotation><filename>a.jpg</filename><object><bndbox><xmin>1</xmin></bndbox></object></annotation>"
CVAT = (
    b'<annotations><image id="0" name="a.jpg"><box xtl="1" ytl="2" xbr="3" ybr="4" rotation="9"/></image></annotations>'
)
OPEN_IMAGES = (
    b"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n"
    b"a,xclick,/m/1,1,0.1,0.3,0.25,0.75,1,0\na,xclick,/m/2,0.7,0,1,0,1,-1,1\n"
)


def seeds() -> dict[str, bytes]:
    """By name."""
    return {
        **{name: b"i" + picture(name) for name in PICTURES},
        **{name: b"c" + content for name, content in _annotations().items()},
        "keypoints": b"p" + _json(_coco(keypoints=[5, 6, 2, 3, 4, 1, 0, 0, 0])),
        "yolo": b"t" + YOLO,
        "yolo-names": b"n" + b"names: {0: cat, 1: dog}\nkpt_shape: [2, 3]\n",
        "open-images": b"o" + OPEN_IMAGES,
        "calibration": b"k" + files("stable_sam").joinpath("weights", "nano_calibration.json").read_bytes(),
        **{
            f"review-{name}-{part.decode()}": b"r" + number + part + content
            for number, name in FORMS.items()
            for path, content in EXPORTED[name].items()
            for part in (b"s" if path == SENT else b"f",)
        },
    }


def picture(form: str) -> bytes:
    """9 x 7 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), "teal").save(buffer, form)
    return buffer.getvalue()


def _annotations() -> dict[str, bytes]:
    record = _coco()["annotations"][0]
    lvis = {"id": 1, "coco_url": "http://x/val2017/a.jpg", "neg_category_ids": [4], "height": 7, "width": 9}
    row = {"image": "a.jpg", "box_xyxy": BOX, "prompt_id": "p", "category": "c", "iscrowd": 0, "attributes": '{"a": 1}'}
    shape = {"label": "c", "shape_type": "circle", "points": [[4, 4], [5, 6]], "group_id": 1}
    region = {"id": "r", "type": "brush", "original_width": 1, "original_height": 1, "value": {"rle": [0, 0, 0, 4, 56]}}
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row, row | {"prompt_id": None}]), parquet)
    return {
        "coco": _json(_coco()),
        "categories-last": _json({**_coco(), "categories": [{"id": 1, "name": "cat"}]}),
        "lvis": _json({**_coco(), "images": [lvis]}),
        "detections": _json([record, record]),
        "lines": b"\n".join([_json(row)] * 2),
        "parquet": parquet.getvalue(),
        "voc": VOC,
        "cvat": CVAT,
        "labelme": _json({"shapes": [shape], "imagePath": "a.jpg", "imageHeight": 9}),
        "labelstudio": _json([{"data": {"image": "a.jpg"}, "predictions": [{"result": [region]}]}]),
    }


def _coco(**more: Any) -> dict[str, Any]:
    record = {"id": 1, "image_id": 1, "bbox": BOX, "category_id": 1, "score": 0.5, "points": [[5, 5, 1]], "area": 7}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 7}],
        "annotations": [record | more, record | {"id": 2}],
    }


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _exported(form: str) -> dict[str, bytes]:
    """The files of an export of two masks, by path; the tool's one first. As a tool gives them back."""
    category = ExportCategory(number=1, name="c", index=0)
    objects = tuple(
        ExportObject(
            prompt_id=f"p{number}", number=number, revision=1, category=category, iscrowd=False, mask=_mask(number),
            box_xyxy=None, score=0.5, details={},
        )
        for number in (1, 2)
    )  # fmt: skip
    image = ExportImage(
        image_uri="/x/a.jpg", number=1, name="a.jpg", size_hw=(7, 9), objects=objects, reference="images/a.jpg"
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        target = Target(
            uri=folder, categories=(category,), polygons=form == "labelme", header={"model_id": "m"}, copies=False
        )
        with WRITERS[form].write(target) as add, json_lists(f"{folder}/{SENT}", {}, ("images",)) as (sent,):
            sent(_sent(image, add(image, b"")))
        paths = (path for path in Path(folder).rglob("*") if path.is_file())
        written = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    ending = {"cvat": ".xml", "yolo": ".txt", "png": ".png"}.get(form, ".json")
    (own,) = (path for path in written if path.endswith(ending) and path != SENT)
    if form == "labelstudio":
        tasks = json.loads(written[own])
        tasks[0]["annotations"] = [{"id": 1, "result": tasks[0]["predictions"][0]["result"]}]
        written[own] = _json(tasks)
    return {own: written[own], SENT: written[SENT]}


def _mask(number: int) -> Any:
    mask = np.zeros((7, 9), np.bool_)
    mask[1:5, 3 * number : 3 * number + 2] = True
    return encode_mask(np.asfortranarray(mask))


EXPORTED = {form: _exported(form) for form in REVIEW_READERS}
"""Of each format: path -> content."""
