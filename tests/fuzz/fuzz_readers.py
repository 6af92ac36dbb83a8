"""Coverage-guided fuzzing of the annotation readers and the image decoder, by hand: it needs `atheris`.

    python tests/fuzz/fuzz_readers.py [options of libFuzzer, such as -max_total_time=600] [corpus folder]

Whatever the bytes: prompts, or one line; both ways of reading agree; no image outside the folder is named; and nothing
takes longer than libFuzzer's -timeout. A finding becomes an ordinary test.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

import atheris
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

INSTRUMENTED = ["stable_sam.data", "stable_sam.formats", "stable_sam.prompt_check", "stable_sam.errors"]

with atheris.instrument_imports(include=INSTRUMENTED):
    from stable_sam.data.annotations import read_prompt_batches, read_prompts
    from stable_sam.data.images import decode_image
    from stable_sam.data.schema import prompt_from_row
    from stable_sam.errors import StableSamError

ROOT = Path(tempfile.mkdtemp(prefix="stable-sam-fuzz-"))
IMAGES = ROOT / "images"
BOX = [1.0, 2.0, 30.0, 40.0]
VOC = b"<annotation><filename>a.jpg</filename><object><bndbox><xmin>1</xmin></bndbox></object></annotation>"
CVAT = (
    b'<annotations><image id="0" name="a.jpg"><box xtl="1" ytl="2" xbr="3" ybr="4" rotation="9"/></image></annotations>'
)


def fuzz(data: bytes) -> None:
    """The first byte says what the others are."""
    kind, content = data[:1], data[1:]
    try:
        if kind == b"i":
            pixels = decode_image(content, name="x", max_pixels=1_000_000)
            assert pixels.shape[2] == 3
        else:
            _read(content)
    except StableSamError as error:
        if not str(error).isprintable() or len(str(error)) > 3000:
            raise AssertionError("a message that is not one line") from error


def _read(content: bytes) -> None:
    uri, images_uri = str(ROOT / "annotations"), str(IMAGES)
    Path(uri).write_bytes(content)
    prompts = list(read_prompts(uri, images_uri=images_uri))
    rows = [row for batch in read_prompt_batches(uri, images_uri=images_uri) for row in batch.to_pylist()]
    assert [repr(prompt_from_row(row)) for row in rows] == [repr(prompt) for prompt in prompts]
    for prompt in prompts:
        assert prompt.image_uri in ("", f"{images_uri}/a.jpg")
        assert prompt.image_uri or prompt.error
        assert (prompt.error or "").isprintable()


def seeds() -> dict[str, bytes]:
    """A small example of every format."""
    record = {"id": 1, "image_id": 1, "bbox": BOX, "category_id": 1, "score": 0.5, "points": [[5, 5, 1]], "area": 7}
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
        "annotations": [record, record | {"id": 2}],
    }
    row = {"image": "a.jpg", "box_xyxy": BOX, "prompt_id": "p", "category": "c", "iscrowd": 0, "attributes": '{"a": 1}'}
    shape = {"label": "c", "shape_type": "circle", "points": [[4, 4], [5, 6]], "group_id": 1}
    region = {"id": "r", "type": "brush", "original_width": 1, "original_height": 1, "value": {"rle": [0, 0, 0, 4, 56]}}
    parquet, buffers = (
        io.BytesIO(),
        {name: io.BytesIO() for name in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")},
    )
    pq.write_table(pa.Table.from_pylist([row, row | {"prompt_id": None}]), parquet)
    for name, buffer in buffers.items():
        Image.new("RGB", (9, 7), "teal").save(buffer, name)
    return {
        "coco": b"c" + json.dumps(coco).encode(),
        "categories-last": b"c" + json.dumps({**coco, "categories": [{"id": 1, "name": "cat"}]}).encode(),
        "detections": b"c" + json.dumps([record, record]).encode(),
        "lines": b"c" + b"\n".join([json.dumps(row).encode()] * 2),
        "parquet": b"c" + parquet.getvalue(),
        "voc": b"c" + VOC,
        "cvat": b"c" + CVAT,
        "labelme": b"c" + json.dumps({"shapes": [shape], "imagePath": "a.jpg", "imageHeight": 9}).encode(),
        "labelstudio": b"c"
        + json.dumps([{"data": {"image": "a.jpg"}, "predictions": [{"result": [region]}]}]).encode(),
        **{name: b"i" + buffer.getvalue() for name, buffer in buffers.items()},
    }


def main() -> None:
    """Write the seeds, and hand over to libFuzzer."""
    IMAGES.mkdir()
    (IMAGES / "a.jpg").write_bytes(b"")
    corpus = ROOT / "seeds"
    corpus.mkdir()
    for name, data in seeds().items():
        (corpus / name).write_bytes(data)
    atheris.Setup([*sys.argv, str(corpus)], fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
