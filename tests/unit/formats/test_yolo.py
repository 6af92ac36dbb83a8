"""YOLO labels to prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.unit.formats.dataset import HEIGHT, WIDTH, Dataset, only


def test_yolo_boxes_and_polygons_are_pixels_of_the_image(data: Dataset) -> None:
    lines = ["1 0.5 0.5 0.2 0.5", "", "0 0.5 0.5 0.2 0.5 0.75", "0 0.1 0.2 0.3 0.2 0.3 0.4", "7 0 0 1 0 1 1 0 1 0.5"]
    data.write("labels/a.txt", "\n".join(lines))
    data.write("data.yaml", "names: [cat, dog]\nnc: 2\n")
    box, scored, polygon, corners = data.read("labels")
    assert (box.prompt_id, box.category_id, box.category, box.image_size) == ("a:0", 1, "dog", (80, 100))
    assert box.box_xyxy == pytest.approx((40, 20, 60, 60))
    assert (scored.prompt_id, scored.score, scored.category) == ("a:1", 0.75, "cat")
    assert polygon.box_xyxy == pytest.approx((10, 16, 30, 32))
    assert corners.box_xyxy == pytest.approx((0, 0, 100, 80))
    assert (corners.score, corners.category_id, corners.category) == (0.5, 7, None)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 0.5 0.5", "expected a class and 4 numbers or more"),
        ("cat 0.5 0.5 x 0.1", "expected a class and numbers"),
        ("0 40 20 60 60", "expected fractions of the image's size, from 0 to 1"),
        ("0 nan 0.5 0.1 0.1", "expected a class and numbers"),
        ("0 0.5 0.5 0 0.1", "the box is empty"),
    ],
)
def test_a_bad_yolo_line_is_a_failed_prompt(data: Dataset, line: str, problem: str) -> None:
    data.write("labels/a.txt", f"{line}\n0 0.5 0.5 0.2 0.2\n")
    bad, good = data.read("labels")
    assert good.error is None
    assert (bad.error or "").startswith(f"{data.uri('labels/a.txt')}: line 1: ")
    assert problem in (bad.error or "")


@pytest.mark.parametrize(
    ("labels", "images", "names"),
    [
        ("labels/train/c.txt", "images", "classes.txt"),
        ("labels/c.txt", "images/train", "labels/obj.names"),
        ("images/train/c.txt", "images", "data.yaml"),
        ("set/labels/1.txt", "images", "set/data.yaml"),
        ("train/c.txt", "images", "train/classes.txt"),
    ],
)
def test_yolo_layouts(data: Dataset, labels: str, images: str, names: str) -> None:
    data.write(labels, "0 0.5 0.5 0.2 0.5\n")
    data.write(names, "names: {0: cat}" if names.endswith("yaml") else "cat\n")
    prompt = only(data.read(labels.rpartition("/")[0], images))
    assert (prompt.error, prompt.category) == (None, "cat")


def test_yolo_lists_among_the_labels_are_no_labels_unless_an_image_is_called_so(data: Dataset) -> None:
    for name in ("classes.txt", "train.txt", "README.txt"):
        data.write(f"labels/{name}", "data/a.jpg\n")
    data.write("labels/a.txt", "0 0.5 0.5 0.2 0.5\n")
    assert [prompt.prompt_id for prompt in data.read("labels")] == ["a:0"]
    data.write("images/train.jpg", Path(data.uri("images/a.jpg")).read_bytes())
    assert [prompt.prompt_id for prompt in data.read("labels")] == ["a:0", "train:0"]


def test_yolo_without_image_or_with_one_that_cannot_be_read(data: Dataset) -> None:
    data.write("images/broken.jpg", b"no image")
    for name in ("broken", "nowhere"):
        data.write(f"labels/{name}.txt", "0 0.5 0.5 0.2 0.5\n")
    broken, nowhere = data.read("labels")
    assert "broken.jpg: cannot read the image's size: expected an image, got bytes that begin with b'no image'" in (
        broken.error or ""
    )
    assert "no image file nowhere.* is below" in (nowhere.error or "")


def test_sizes_are_those_of_the_upright_image_also_behind_a_long_header(data: Dataset) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.new("RGB", (WIDTH, HEIGHT))
    image.save(data.uri("images/turned.jpg"), exif=turned.tobytes(), icc_profile=bytes(200_000))
    data.write("labels/turned.txt", "0 0.5 0.5 1 1\n")
    prompt = only(data.read("labels"))
    assert (prompt.image_size, prompt.box_xyxy) == ((100, 80), (0, 0, 80, 100))


def test_yolo_pose(data: Dataset) -> None:
    data.write("data.yaml", "names: [cat]\nkpt_shape: [2, 3]\n")
    data.write("labels/a.txt", "0 0.5 0.5 0.2 0.5 0.4 0.5 2 0.6 0.5 1\n")
    assert only(data.read("labels")).points_xy == ()
    prompt = only(data.read("labels", keypoints=True))
    assert (prompt.points_xy, prompt.point_labels) == (((40, 40),), (1,))
    assert prompt.box_xyxy == pytest.approx((40, 20, 60, 60))
