"""Two records of a source that have one id are both named, in every format whose files give the ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stable_sam.errors import AnnotationError
from stable_sam.identity import ModelIdentity
from stable_sam.runs.plan import plan_request
from stable_sam.runs.request import RunRequest

MODEL = ModelIdentity(model_id="nano", weights_sha256="ab", dtype="float32")
BOX = [10, 10, 20, 20]


def coco(path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in (1, 2)]
    ids = ((1, 1), (2, 1), (1, 2))
    annotations = [{"id": one, "image_id": image, "category_id": 0, "bbox": BOX} for one, image in ids]
    path.write_text(json.dumps({"images": images, "categories": [{"id": 0, "name": "a"}], "annotations": annotations}))


def rows(path: Path) -> list[dict[str, Any]]:
    return [{"prompt_id": one, "image": f"{n}.png", "box_xyxy": BOX} for one, n in (("a", 1), ("b", 1), ("a", 2))]


def json_lines(path: Path) -> None:
    path.write_text("\n\n".join(map(json.dumps, rows(path))))


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows(path)), path)


def open_images(path: Path) -> None:
    head = "ImageID,BoxID,LabelName,XMin,XMax,YMin,YMax"
    path.write_text("\n".join([head, *(f"1,{box},/m/01,0.1,0.5,0.1,0.5" for box in "xyx")]))


def label_studio(path: Path) -> None:
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["a"]}
    size = {"original_width": 64, "original_height": 48}
    region = {"id": "r", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value, **size}
    task = {"id": 7, "data": {"image": "1.png"}, "annotations": [{"id": 3, "result": [region]}]}
    path.write_text(json.dumps([task, task]))


WRITERS = {
    "weak.json": (coco, "1", "annotations[0]", "annotations[2]"),
    "weak.jsonl": (json_lines, "a", "line 1", "line 5"),
    "weak.parquet": (parquet, "a", "row 1", "row 3"),
    "weak.csv": (open_images, "1:x", "line 2", "line 4"),
    "tasks.json": (label_studio, "7:3:r", "task 7 at place 0, region r", "task 7 at place 1, region r"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("frame", ["upright", "stored"])
@pytest.mark.parametrize("named", [False, True])
def test_both_records_are_named_with_their_file(name: str, frame: str, named: bool, tmp_path: Path) -> None:
    write, prompt_id, first, second = WRITERS[name]
    for number in (1, 2):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / f"images/{number}.png")
    write(tmp_path / name)
    request = RunRequest.parse(
        annotations_uri=f"{'site=' * named}{tmp_path / name}",
        images_uri=str(tmp_path / "images"),
        output_uri=str(tmp_path / "table"),
        config={"source": {"frame": frame}},
    )
    with pytest.raises(AnnotationError) as caught:
        plan_request(request, model=MODEL, dry_run=True)
    both = f"{tmp_path / name}: {first} and for {tmp_path / name}: {second}"
    assert f"prompt_id {'site/' * named}{prompt_id}: expected every id once, got it for {both}: " in str(caught.value)
