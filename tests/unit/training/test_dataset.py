"""Samples of the training sets: pictures, masks, boxes and points that agree; what bad data gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stable_sam.errors import AnnotationError, ConfigError, ImageError
from stable_sam.modeling.bases.tiny import build_tiny
from stable_sam.training.dataset import TrainingBatches, read_training_sets
from stable_sam.training.train_base import train_base
from stable_sam.training.training_config import BaseTraining
from stable_sam.training.windows import SAM_PIXEL_MEAN, cut_image, cut_masks, pad_image, random_window
from tests.unit.training.ellipses import same, settings_of, write_set

Edit = Callable[[dict], object]


def batches(data: Path, **changes) -> TrainingBatches:
    wanted = {"size": 64, "batch_images": 2, "objects": 2, "points": 3, "seed": 7} | changes
    return TrainingBatches(read_training_sets(data), {}, **wanted)


def test_samples_are_a_function_of_seed_and_step(data):
    one, again = batches(data), batches(data)
    forward = [one[step] for step in range(4)]
    backward = [again[step] for step in (3, 2, 1, 0)][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not same(forward[0], forward[1])
    assert not same(forward[0], batches(data, seed=8)[0])


def test_parts_of_a_sample_agree(data):
    """Boxes, points and coverage are of one object."""
    for step in range(6):
        batch = batches(data)[step]
        assert batch.images.shape == (2, 3, 64, 64)
        assert batch.images.dtype == torch.uint8
        assert batch.coverage.shape == (2, 2, 16, 16)
        assert batch.boxes.shape == (2, 2, 4)
        assert batch.points.shape == (2, 2, 3, 2)
        assert (batch.coverage >= 0).all()
        assert (batch.coverage <= 1).all()
        assert (batch.boxes[..., 2:] > batch.boxes[..., :2]).all()
        for points, box, coverage in zip(
            batch.points.flatten(0, 1), batch.boxes.flatten(0, 1), batch.coverage.flatten(0, 1), strict=True
        ):
            assert ((points > box[:2]) & (points < box[2:])).all()
            columns, rows = (points // 4).long().T
            assert (coverage[rows, columns] > 0).all()
            rows, columns = torch.nonzero(coverage, as_tuple=True)
            low, high = torch.stack((columns.min(), rows.min())), torch.stack((columns.max(), rows.max())) + 1
            torch.testing.assert_close(low.float(), torch.floor(box[:2] / 4))
            torch.testing.assert_close(high.float(), torch.ceil(box[2:] / 4))


@pytest.mark.parametrize("flip", [False, True])
def test_picture_and_masks_are_cut_alike(flip):
    rng = np.random.default_rng(0)
    mask = np.zeros((72, 96), np.uint8)
    cv2.ellipse(mask, (40, 30), (25, 14), 30, 0, 360, 1, -1)
    picture = np.repeat(mask[:, :, None] * 255, 3, axis=2)
    shown = 0
    for _ in range(20):
        window = random_window(mask.shape, np.array([15.0, 16.0, 50.0, 28.0]), rng)
        x, y, w, h = window
        assert 0 <= x <= x + w <= 96
        assert 0 <= y <= y + h <= 72
        image = cut_image(picture, window, 64, flip)
        assert max(image.shape[:2]) == 64
        cut = cut_masks(mask[:, :, None], window, 64, flip)
        assert len(cut) == (mask[y : y + h, x : x + w].sum() >= 0.4 * mask.sum())
        for visible in cut:
            shown += 1
            np.testing.assert_array_equal(visible[: image.shape[0], : image.shape[1]], image[:, :, 0] > 127)
            assert visible.shape == (64, 64)
            assert visible[image.shape[0] :].sum() == visible[:, image.shape[1] :].sum() == 0
    assert shown > 10


def test_what_is_beside_a_picture_is_its_mean():
    padded = pad_image(np.full((2, 3, 3), 7, np.uint8), 4)
    assert (padded[:2, :3] == 7).all()
    assert (padded[2:] == SAM_PIXEL_MEAN).all()
    assert (padded[:, 3:] == SAM_PIXEL_MEAN).all()
    np.testing.assert_allclose(SAM_PIXEL_MEAN, build_tiny().pixel_mean.flatten(), atol=0.5)


def test_weights_choose_the_sets(data):
    sets = read_training_sets(data)
    assert {name: len(items) for name, items in sets.items()} == {"one": 3, "two": 3}
    common = {"size": 64, "batch_images": 4, "objects": 1, "points": 1, "seed": 0}
    only = TrainingBatches(sets, {"two": 0.0}, **common)
    alone = TrainingBatches({"one": sets["one"], "two": sets["one"]}, {"two": 0.0}, **common)
    assert all(same(only[step], alone[step]) for step in range(3))
    with pytest.raises(ConfigError, match="set_weights: expected a positive share for one of one, two, got 0 for all"):
        TrainingBatches(sets, {"one": 0.0, "two": 0.0}, **common)


def broken(edit: Edit) -> Edit:
    """An edit of a set's folder that edits the document of its instances.json."""

    def change(folder: Path) -> None:
        file = folder / "instances.json"
        coco = json.loads(file.read_text())
        edit(coco)
        file.write_text(json.dumps(coco))

    return change


POLYGON = [[1, 1, 9, 1, 9, 9]]
BROKEN_SETS: list[tuple[str, Edit, type[Exception], str]] = [
    ("no sets", lambda s: (s / "instances.json").unlink(), AnnotationError, r"data: expected <set>/instances\.json"),
    ("broken JSON", lambda s: (s / "instances.json").write_text('{"images": ['), AnnotationError, "instances.*RLE"),
    ("a list", lambda s: (s / "instances.json").write_text("[]"), AnnotationError, "expected COCO instances"),
    ("no annotations", broken(lambda c: c.pop("annotations")), AnnotationError, "KeyError.'annotations'"),
    ("no masks", broken(lambda c: c["annotations"].clear()), AnnotationError, "at least one mask, got none"),
    (
        "a polygon",
        broken(lambda c: c["annotations"][1].update(segmentation=POLYGON)),
        AnnotationError,
        "annotation 1: ",
    ),
    (
        "other size",
        broken(lambda c: c["images"][1].update(width=95)),
        AnnotationError,
        "annotation 2: .*image's size",
    ),
    (
        "other run lengths",
        broken(lambda c: c["annotations"][3]["segmentation"].update(counts="1")),
        AnnotationError,
        "annotation 3: expected run lengths that add up to the image",
    ),
    ("no such image", broken(lambda c: c["annotations"][4].update(image_id=77)), AnnotationError, "KeyError.77"),
    ("missing picture", lambda s: (s / "images" / "2.png").unlink(), ImageError, "2.png: expected a training image"),
]


@pytest.mark.parametrize(("edit", "error", "message"), [c[1:] for c in BROKEN_SETS], ids=[c[0] for c in BROKEN_SETS])
def test_broken_training_data_is_refused_in_one_line(tmp_path, edit, error, message):
    edit(write_set(tmp_path / "data" / "one", 0, "images", "{}"))
    with pytest.raises(error, match=message) as raised:
        read_training_sets(tmp_path / "data")
    assert len(str(raised.value).splitlines()) == 1
    assert str(tmp_path / "data") in str(raised.value)


def test_no_data_folder_is_refused(tmp_path):
    with pytest.raises(AnnotationError, match="nowhere: expected <set>/instances.json"):
        read_training_sets(tmp_path / "nowhere")


UNREADABLE: list[tuple[str, Callable[[Path], object], str]] = [
    ("not a picture", lambda file: file.write_bytes(b"GIF"), r"\d\.png: expected a training image"),
    ("other size", lambda file: cv2.imwrite(str(file), np.zeros((5, 9, 3), np.uint8)), "the upright image has 9 x 5$"),
]


@pytest.mark.parametrize(("spoil", "message"), [c[1:] for c in UNREADABLE], ids=[c[0] for c in UNREADABLE])
def test_an_unreadable_picture_ends_training_with_one_line(tmp_path, spoil, message):
    """The picture is read in another thread, whose errors have to come over as they are."""
    for picture in (write_set(tmp_path / "data" / "one", 0, "images", "{}") / "images").iterdir():
        spoil(picture)
    with pytest.raises(ImageError, match=message) as raised:
        train_base(tmp_path / "data", tmp_path / "out", settings_of(BaseTraining))
    assert len(str(raised.value).splitlines()) == 1


def test_data_without_objects_of_a_size_is_refused(tmp_path, monkeypatch):
    """Not sought for ever."""
    monkeypatch.setattr("stable_sam.training.dataset.SAMPLE_TRIES", 20)
    for module in ("dataset", "windows"):
        monkeypatch.setattr(f"stable_sam.training.{module}.MIN_OBJECT_FRACTION", 0.99)
    write_set(tmp_path / "one", 0, "images", "{}")
    with pytest.raises(
        AnnotationError, match="sets one: expected objects of at least 99.0% of the input, got none in 20"
    ):
        batches(tmp_path)[0]
