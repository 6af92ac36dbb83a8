"""What goes out to a tool comes back the same, pixel by pixel, in every format; broken files are told in one line."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from stable_sam.errors import AnnotationError, PromptError
from stable_sam.formats.coco.review import segmentation_mask
from stable_sam.formats.export_records import SENT, ExportCategory, ExportImage, ExportObject, Target
from stable_sam.formats.labelstudio.brush_rle import decode_brush, encode_brush
from stable_sam.formats.polygons import fill, one_ring, polygon_parts
from stable_sam.formats.registry import REVIEW_READERS, WRITERS
from stable_sam.formats.review_files import open_files
from stable_sam.formats.review_records import collect
from stable_sam.review.export import _sent
from stable_sam.rle import encode_mask
from stable_sam.storage.json_lists import json_lists

CATEGORIES = tuple(ExportCategory(number=n + 3, name=f"kïnd & <{n}>", index=n) for n in range(2))
HOSTILE_IDS = ("7", "a \"<&>' ü", "tab\there", "a:1/b.jpg")


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Not empty: noise, which is all holes and parts, or a few rectangles laid over each other, some cut out."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    if draw(st.booleans()):
        mask = draw(arrays(np.bool_, (height, width)))
    else:
        mask = np.zeros((height, width), np.bool_)
        for filled in draw(st.lists(st.booleans(), min_size=1, max_size=6)):
            y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
            mask[y : y + draw(st.integers(1, height)), x : x + draw(st.integers(1, width))] = filled
    mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
    return mask


def object_of(mask: np.ndarray, number: int = 1, prompt_id: str | None = None) -> ExportObject:
    return ExportObject(
        prompt_id=prompt_id or f"p{number}", number=number, revision=3, category=CATEGORIES[number % 2], iscrowd=False,
        mask=encode_mask(np.asfortranarray(mask)), box_xyxy=None, score=0.5, details={"status": "ok"},
    )  # fmt: skip


def image_of(*items: ExportObject) -> ExportImage:
    return ExportImage(
        image_uri="/pictures/sub/å 1.jpg", number=5, name="sub/å 1.jpg", size_hw=items[0].mask.size_hw, objects=items,
        reference="images/sub/å 1.jpg",
    )  # fmt: skip


def written(form: str, folder: Path, image: ExportImage, *, polygons: bool = False) -> None:
    header: dict[str, Any] = {"model_id": "tiny", "format": form}
    target = Target(uri=str(folder), categories=CATEGORIES, polygons=polygons, header=header, copies=True)
    with WRITERS[form].write(target) as add, json_lists(str(folder / SENT), header, ("images",)) as (sent,):
        sent(_sent(image, add(image, b"")))


def submitted(folder: Path) -> None:
    """What Label Studio exports once an annotator has submitted the predictions as they were."""
    path = folder / "tasks.json"
    tasks = json.loads(path.read_text())
    for number, task in enumerate(tasks):
        task["annotations"] = [{"id": number, "was_cancelled": False, "result": task["predictions"][0]["result"]}]
    path.write_text(json.dumps(tasks))


@contextlib.contextmanager
def came_back(form: str, image: ExportImage, *, polygons: bool = False) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        written(form, Path(folder), image, polygons=polygons)
        if form == "labelstudio":
            submitted(Path(folder))
        yield Path(folder)


@pytest.mark.parametrize(
    ("form", "polygons"),
    [("coco", False), ("coco", True), ("labelstudio", False), ("cvat", False), ("cvat", True), ("labelme", False),
     ("labelme", True), ("png", False), ("yolo", True)],
)  # fmt: skip
@settings(max_examples=8)
@given(first=masks(), data=st.data())
def test_masks_come_back_as_they_went_out(form: str, polygons: bool, first: np.ndarray, data: st.DataObject) -> None:
    # The second one lies over the first, so that masks which overlap are kept, too.
    second = first[::-1, ::-1] if data.draw(st.booleans()) else np.ones_like(first)
    image = image_of(object_of(first, 1), object_of(second, 2))
    with came_back(form, image, polygons=polygons) as folder:
        answers, problems = collect(REVIEW_READERS[form](open_files(str(folder))))
    assert problems == []
    found = {answer.prompt_id: answer.mask for answer in answers}
    if form == "yolo" and np.array_equal(first, second):
        assert set(found.values()) == {image.objects[0].mask}
    else:
        assert found == {item.prompt_id: item.mask for item in image.objects}
    assert {answer.revision for answer in answers} == {3}
    assert {answer.checked for answer in answers} == {form == "labelstudio"}


@pytest.mark.parametrize("form", ["coco", "labelstudio", "cvat", "labelme", "png"])
def test_any_prompt_id_comes_back(form: str) -> None:
    corner = np.eye(4, dtype=np.bool_)
    image = image_of(*(object_of(corner, n, prompt_id) for n, prompt_id in enumerate(HOSTILE_IDS)))
    with came_back(form, image) as folder:
        answers, problems = collect(REVIEW_READERS[form](open_files(str(folder))))
    assert problems == []
    assert {answer.prompt_id for answer in answers} == set(HOSTILE_IDS)


def without_ids(form: str, folder: Path, renumbered: bool) -> None:
    """What a tool leaves that drops our ids, or writes numbers of its own in their place."""
    (path,) = (each for each in folder.rglob("*.*") if each.suffix in (".json", ".xml") and each.name in OWN_FILES)
    text = path.read_text()
    if form == "cvat":
        new = r'<attribute name="prompt_id">9</attribute>' if renumbered else ""
        path.write_text(re.sub('<attribute name="prompt_id">[^<]*</attribute>', new, text))
        return
    document = json.loads(text)
    objects = {
        "coco": lambda: document["annotations"],
        "labelme": lambda: document["shapes"],
        "labelstudio": lambda: document[0]["annotations"][0]["result"],
    }[form]()
    for number, each in enumerate(objects):
        each.pop("prompt_id", None)
        each |= {"id": f"x{number}"} | ({"prompt_id": str(number)} if renumbered else {})
    document = document[0] if form == "labelstudio" else document
    (document["images"][0] if form == "coco" else document.get("data", document)).pop("stable_sam")
    path.write_text(json.dumps([document] if form == "labelstudio" else document))


OWN_FILES = ("instances.json", "annotations.xml", "å 1.json", "tasks.json")


@pytest.mark.parametrize(
    ("form", "polygons"),
    [("coco", False), ("coco", True), ("labelstudio", False), ("cvat", False), ("cvat", True), ("labelme", False),
     ("labelme", True)],
)  # fmt: skip
@settings(max_examples=10)
@given(first=masks(), renumbered=st.booleans(), flipped=st.booleans())
def test_masks_whose_ids_were_lost_come_back_as_they_went_out(
    form: str, polygons: bool, first: np.ndarray, renumbered: bool, flipped: bool
) -> None:
    second = first[::-1, ::-1] if flipped else np.ones_like(first)
    image = image_of(object_of(first, 1), object_of(second, 2))
    with came_back(form, image, polygons=polygons) as folder:
        without_ids(form, folder, renumbered)
        answers, problems = collect(REVIEW_READERS[form](open_files(str(folder))))
    assert problems == []
    assert {answer.prompt_id: answer.mask for answer in answers} == {
        item.prompt_id: item.mask for item in image.objects
    }
    assert all(answer.lost_id for answer in answers)


@given(masks())
def test_polygons_hold_every_pixel_under_each_rule(mask: np.ndarray) -> None:
    import cv2

    parts = polygon_parts(mask)
    rings = [ring for part in parts for ring in (part.outer, *part.holes)]
    assert all(len(ring) >= 3 for ring in rings)
    assert np.array_equal(fill(rings, mask.shape), mask)
    assert np.array_equal(fill([one_ring(parts)], mask.shape), mask)
    whole = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(whole, [ring.astype(np.int32) for ring in rings], 1)
    assert np.array_equal(whole > 0, mask)
    # Coordinates that were rounded, moved by what rounding may do.
    noise = np.random.default_rng(0)
    moved = [ring + noise.uniform(-0.2, 0.2, ring.shape) for ring in rings]
    assert np.array_equal(fill(moved, mask.shape), mask)


@given(masks())
def test_a_filled_polygon_is_what_pycocotools_and_pillow_make_of_it(mask: np.ndarray) -> None:
    """They know no holes, and each part alone."""
    for part in polygon_parts(mask):
        expected = fill([part.outer], mask.shape)
        rle = coco_mask.merge(coco_mask.frPyObjects([part.outer.ravel().tolist()], *mask.shape))
        assert np.array_equal(coco_mask.decode(rle), expected)
        picture = Image.new("1", mask.shape[::-1])
        ImageDraw.Draw(picture).polygon([tuple(corner) for corner in part.outer.tolist()], outline=1, fill=1)
        assert np.array_equal(np.array(picture), expected)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(-5, 12), st.floats(-5, 12)), min_size=3, max_size=8))
def test_fill_is_the_even_odd_rule_at_pixel_centres(corners: list[tuple[float, float]]) -> None:
    ring = np.array(corners)
    filled = fill([ring], (5, 6))
    for y, x in np.ndindex(5, 6):
        crossings = [
            x0 + (y + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True)
            if (y0 <= y + 0.5) != (y1 <= y + 0.5)
        ]
        if all(abs(crossing - x - 0.5) > 1e-6 for crossing in crossings):  # a centre on a line is either
            assert filled[y, x] == sum(crossing < x + 0.5 for crossing in crossings) % 2


@given(masks())
def test_brush_masks_in_pieces_of_any_kind_are_read(mask: np.ndarray) -> None:
    size = (mask.shape[0], mask.shape[1])
    assert np.array_equal(decode_brush(encode_brush(mask), size), mask)
    # Values one by one, as packers write what repeats not often enough.
    values = "".join(f"{255 * int(pixel):08b}" * 4 for pixel in mask.ravel())
    count = 4 * mask.size
    bits = f"{count:032b}{7:05b}{3:04b}{7:04b}{11:04b}{15:04b}0{3:02b}{count - 1:016b}{values}"
    packed = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    assert np.array_equal(decode_brush(list(packed), size), mask)


@given(masks(), st.data())
def test_broken_run_lengths_are_told(mask: np.ndarray, data: st.DataObject) -> None:
    size = (mask.shape[0], mask.shape[1])
    packed = encode_brush(mask)
    with pytest.raises(PromptError, match="bytes that end too early"):
        decode_brush(packed[: data.draw(st.integers(0, len(packed) - 2))], size)
    with pytest.raises(PromptError, match="expected brush strokes on"):
        decode_brush(packed, (size[0] + 1, size[1]))
    counts = encode_mask(np.asfortranarray(mask)).counts
    for broken in (counts + "1", counts[:-1], "~" + counts, ""):
        with pytest.raises(ValueError, match="expected"):
            segmentation_mask({"size": list(size), "counts": broken}, size)


@pytest.mark.parametrize("form", sorted(REVIEW_READERS))
@given(junk=st.binary(max_size=60))
@settings(max_examples=6)
def test_files_that_are_something_else_are_told(form: str, junk: bytes) -> None:
    image = image_of(object_of(np.ones((4, 5), np.bool_)))
    with came_back(form, image) as folder:
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != SENT]
        for path in files:
            path.write_bytes(junk)
        answers = []
        with contextlib.suppress(AnnotationError):
            answers, _ = collect(REVIEW_READERS[form](open_files(str(folder))))
        assert all(answer.mask is None for answer in answers) or form == "yolo"
