"""What any tool writes comes back as it was; what nobody should write is prompts with errors, or one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stable_sam.config import SourceConfig
from stable_sam.errors import StableSamError
from stable_sam.formats.labelstudio.brush_rle import encode_brush, painted_box
from stable_sam.formats.read import read_prompt_batches, read_prompts
from stable_sam.records import Prompt
from stable_sam.table.schema import prompt_from_row

WIDTH, HEIGHT = 100, 80
HUGE: list[Any] = [[1, 2], 10**400, [10**400, 1]]


@dataclass(frozen=True)
class Made:
    """An annotation to be written: XYXY of whole pixels and a label."""

    box: tuple[int, int, int, int]
    label: str


names = st.text(st.characters(categories=["L", "N", "Zs"], max_codepoint=0x2FFF), min_size=1, max_size=8).map(str.strip)
boxes = st.tuples(
    st.integers(0, WIDTH - 10), st.integers(0, HEIGHT - 10), st.integers(2, WIDTH), st.integers(2, HEIGHT)
).map(lambda b: (b[0], b[1], min(b[0] + b[2], WIDTH), min(b[1] + b[3], HEIGHT)))
made = st.lists(st.builds(Made, boxes, names.filter(bool)), min_size=1, max_size=4)


def voc(annotations: list[Made]) -> str:
    objects = "".join(
        f"<object><name>{escape(a.label)}</name><bndbox><xmin>{a.box[0] + 1}</xmin><ymin>{a.box[1] + 1}</ymin>"
        f"<xmax>{a.box[2]}</xmax><ymax>{a.box[3]}</ymax></bndbox></object>"
        for a in annotations
    )
    return f"<annotation><filename>a.jpg</filename>{objects}</annotation>"


def yolo(annotations: list[Made]) -> str:
    return "\n".join(
        f"{number} {(x0 + x1) / 2 / WIDTH} {(y0 + y1) / 2 / HEIGHT} {(x1 - x0) / WIDTH} {(y1 - y0) / HEIGHT}"
        for number, (x0, y0, x1, y1) in enumerate(a.box for a in annotations)
    )


def yolo_polygons(annotations: list[Made]) -> str:
    return "\n".join(
        f"{number} " + " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1)))
        for number, (x0, y0, x1, y1) in enumerate(a.box for a in annotations)
    )


def labelme(annotations: list[Made]) -> str:
    shapes = [
        {"label": a.label, "shape_type": "rectangle", "points": [[a.box[2], a.box[1]], [a.box[0], a.box[3]]]}
        for a in annotations
    ]
    return json.dumps({"shapes": shapes, "imagePath": "a.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH})


def label_studio(annotations: list[Made]) -> str:
    results = []
    for number, a in enumerate(annotations):
        x0, y0, x1, y1 = a.box
        place = {"x": 100 * x0 / WIDTH, "y": 100 * y0 / HEIGHT}
        size = {"width": 100 * (x1 - x0) / WIDTH, "height": 100 * (y1 - y0) / HEIGHT}
        value = place | size | {"rectanglelabels": [a.label]}
        results.append({"id": str(number), "type": "rectanglelabels", "value": value})
    return json.dumps([{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"id": 1, "result": results}]}])


def cvat(annotations: list[Made]) -> str:
    shapes = "".join(
        f'<box label={quoteattr(a.label)} xtl="{a.box[0]}" ytl="{a.box[1]}" xbr="{a.box[2]}" ybr="{a.box[3]}"/>'
        for a in annotations
    )
    return f'<annotations><image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">{shapes}</image></annotations>'


def open_images(annotations: list[Made]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    text.write("ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\r\n")
    for a in annotations:
        x0, y0, x1, y1 = a.box
        writer.writerow(["a", "s", a.label, 1, x0 / WIDTH, x1 / WIDTH, y0 / HEIGHT, y1 / HEIGHT, 0, -1])
    return text.getvalue()


WRITERS: dict[str, Callable[[list[Made]], str]] = {
    "voc.xml": voc,
    "yolo.txt": yolo,
    "polygons.txt": yolo_polygons,
    "labelme.json": labelme,
    "labelstudio.json": label_studio,
    "cvat.xml": cvat,
    "openimages.csv": open_images,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("formats")
    (root / "images").mkdir()
    for name in ("a", "yolo", "polygons"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / f"{name}.jpg")
    (root / "outside.jpg").write_bytes(b"")
    return root


def read(folder: Path, name: str, content: bytes, **config: Any) -> list[Prompt]:
    (folder / name).write_bytes(content)
    where: dict[str, Any] = {"images_uri": str(folder / "images"), "source": SourceConfig(**config)}
    prompts = list(read_prompts(str(folder / name), **where))
    batches = read_prompt_batches(str(folder / name), **where)
    assert [repr(prompt_from_row(row)) for batch in batches for row in batch.to_pylist()] == list(map(repr, prompts))
    return prompts


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=25)
@given(annotations=made)
def test_what_a_tool_wrote_is_read(folder: Path, name: str, annotations: list[Made]) -> None:
    prompts = read(folder, name, WRITERS[name](annotations).encode())
    assert [prompt.error for prompt in prompts] == [None] * len(annotations)
    assert len({prompt.prompt_id for prompt in prompts}) == len(annotations)
    for prompt, annotation in zip(prompts, annotations, strict=True):
        assert prompt.box_xyxy == pytest.approx(annotation.box, abs=1e-6)
        assert prompt.category == (None if name.endswith(".txt") else annotation.label)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=30)
@given(
    annotations=made, edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=6)), max_size=4)
)
def test_damaged_files_are_prompts_or_one_line(
    folder: Path, name: str, annotations: list[Made], edits: list[tuple[float, int, bytes]]
) -> None:
    content = bytearray(WRITERS[name](annotations).encode())
    for where, removed, added in edits:
        at = int(where * len(content))
        content[at : at + removed] = added
    prompts: list[Prompt] = []
    message = ""
    try:
        prompts = read(folder, name, bytes(content))
    except StableSamError as error:
        message = str(error)
    assert message.isprintable()
    for prompt in prompts:
        assert prompt.image_uri == "" or Path(prompt.image_uri).parent == folder / "images"
        assert prompt.image_uri or prompt.error
        assert (prompt.error or "").isprintable()


anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=4),
        st.sampled_from(HUGE),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
shapes = st.one_of(
    anything,
    st.fixed_dictionaries(
        {"points": anything, "shape_type": st.sampled_from(["rectangle", "circle", "mask", "points", "polygon", None])},
        optional={"label": anything, "group_id": anything, "score": anything},
    ),
)
values = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("x", "y", "width", "height", "rotation", "points", "rle", "labels", "choices"), anything),
)
results = st.one_of(
    anything,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["rectangle", "polygonlabels", "brush", "keypoint", "ellipse", "choices"])},
        optional={"value": st.one_of(anything, values), "id": anything, "original_width": anything, "score": anything},
    ),
)


@settings(max_examples=50)
@given(found=st.lists(shapes, max_size=4), path=anything)
def test_whatever_stands_in_labelme_json(folder: Path, found: list[Any], path: Any) -> None:
    document = {"shapes": found, "imagePath": path, "imageHeight": HEIGHT, "imageWidth": WIDTH}
    with suppress(StableSamError):
        assert len(read(folder, "a.json", json.dumps(document).encode(), format="labelme")) <= len(found)


@settings(max_examples=50)
@given(found=st.lists(results, max_size=4), data=anything)
def test_whatever_stands_in_label_studio_json(folder: Path, found: list[Any], data: Any) -> None:
    tasks = [{"id": 1, "data": {"image": data}, "annotations": [{"result": found}]}, data]
    with suppress(StableSamError):
        read(folder, "a.json", json.dumps(tasks).encode(), format="labelstudio")


@settings(max_examples=50)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    painted=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11))),
)
def test_the_box_of_brush_strokes(height: int, width: int, painted: list[tuple[int, int]]) -> None:
    mask = np.zeros((height, width), bool)
    for y, x in painted:
        mask[y % height, x % width] = True
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else None
    assert painted_box(encode_brush(mask), (height, width)) == box
