"""Batches from cached embeddings: which pictures and objects come when, and that their parts agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from stable_sam.errors import AnnotationError, ConfigError
from stable_sam.evaluation.prompts import tight_box
from stable_sam.images.frames import Frame
from stable_sam.refining.predict import embed_image
from stable_sam.training import cached_batches
from stable_sam.training.cached_batches import EmbeddedBatches, cell_coverage
from stable_sam.training.dataset import TrainingImage, cut_window, read_image, read_training_sets
from stable_sam.training.embeddings import EmbeddingCache
from stable_sam.training.training_config import PluginTraining
from stable_sam.training.windows import window_around
from tests.unit.training.ellipses import same, settings_of, tiny


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> EmbeddingCache:
    return EmbeddingCache(tmp_path_factory.mktemp("cache"), tiny())


def batches(data, cache, **changes) -> EmbeddedBatches:
    made = EmbeddedBatches(read_training_sets(data), settings_of(PluginTraining, **changes), cache)
    made.fill_cache()
    return made


def names(made: EmbeddedBatches) -> list[str]:
    return [f"{item.path.parents[1].name}/{item.path.name}" for item in made.schedule]


def test_an_epoch_is_every_picture_once(data, cache):
    one = batches(data, cache, steps=None)
    assert one.steps == 3
    assert set(Counter(names(one)).values()) == {1}
    assert len(names(one)) == 6
    three = batches(data, cache, steps=None, epochs=3, batch_images=6)
    assert three.steps == 3
    epochs = [names(three)[start : start + 6] for start in (0, 6, 12)]
    assert all(sorted(epoch) == sorted(names(one)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_sets_come_by_their_weights(data, cache):
    made = batches(data, cache, steps=500, set_weights={"one": 3})
    counts = Counter(names(made))
    shares = {name: sum(count for key, count in counts.items() if key.startswith(name)) for name in ("one", "two")}
    assert 0.7 < shares["one"] / 1000 < 0.8
    for name in shares:  # and in each set every picture as often as any other
        assert np.ptp([count for key, count in counts.items() if key.startswith(name)]) <= 1
    assert not any(name.startswith("two") for name in names(batches(data, cache, set_weights={"two": 0})))


def test_only_pictures_that_come_are_encoded(data, tmp_path):
    made = batches(data, EmbeddingCache(tmp_path, tiny()), steps=1, batch_images=2)
    assert len(list(made.cache.folder.iterdir())) == len(set(names(made))) == 2


def test_batches_are_a_function_of_seed_and_step(data, cache):
    one, again = batches(data, cache, steps=4), batches(data, cache, steps=4)
    forward = [one[step] for step in range(4)]
    backward = [again[step] for step in (3, 2, 1, 0)][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not same(forward[0], forward[3])
    assert not same(forward[0], batches(data, cache, seed=8)[0])


def test_parts_of_a_batch_are_in_the_frame_of_inference(data, cache):
    """Against the picture's masks, brought to the model's input by hand."""
    made = batches(data, cache, steps=6)
    for step in range(6):
        batch = made[step].to(torch.device("cpu"))
        assert batch.features.early is None
        for place, item in enumerate(made.schedule[step * 2 : step * 2 + 2]):
            stored = cache.read(item).embedding[0]
            assert torch.equal(batch.features.embedding[place], stored.float())
            frame = Frame(item.size_hw, 64)
            masks = [coco_mask.decode(rle).astype(bool) for rle in item.rles]
            boxes = [frame.to_model_xyxy(tight_box(mask)) for mask in masks]
            for m in range(2):
                (index,) = (i for i, box in enumerate(boxes) if np.allclose(box, batch.boxes[place, m]))
                scale = np.array(frame.resized_hw)[::-1] / np.array(item.size_hw)[::-1]
                columns, rows = np.floor(batch.points[place, m].numpy() / scale).astype(int).T
                assert masks[index][rows, columns].all()
                area = masks[index].sum() * scale.prod()
                assert batch.coverage[place, m].sum().item() * 16 == pytest.approx(area, rel=0.03)


def test_windows_show_an_object_as_the_cut_out_picture_would(data, tmp_path):
    made = batches(data, EmbeddingCache(tmp_path, tiny()), steps=3, windows=1)
    assert all(item.window is not None for item in made.schedule)
    for step in range(3):
        batch = made[step].to(torch.device("cpu"))
        for place, item in enumerate(made.schedule[step * 2 : step * 2 + 2]):
            x, y, w, h = item.window
            cut = read_image(item.path)[y : y + h, x : x + w]
            expected = embed_image(made.cache.model, np.ascontiguousarray(cut)).features.embedding[0]
            assert torch.equal(batch.features.embedding[place], expected.half().float())
            masks = coco_mask.decode(item.rles)
            assert masks.shape[:2] == (h, w)
            boxes = [Frame((h, w), 64).to_model_xyxy(tight_box(mask > 0)) for mask in masks.transpose(2, 0, 1)]
            assert any(np.allclose(box, batch.boxes[place, 0]) for box in boxes)


def test_a_window_leaves_out_objects_that_it_hardly_shows():
    masks = np.zeros((40, 60, 3), np.uint8, order="F")
    masks[5:15, 5:15, 0] = masks[5:15, 14:34, 1] = masks[30:38, 50:58, 2] = 1
    cut = cut_window(TrainingImage(Path("x.png"), (40, 60), coco_mask.encode(masks)), (2, 3, 20, 18))
    assert cut.size_hw == (18, 20)
    assert [int(coco_mask.area(rle)) for rle in cut.rles] == [100, 80]


@given(
    size=st.tuples(st.integers(20, 300), st.integers(20, 300)),
    corners=st.tuples(*(st.floats(0, 1) for _ in range(4))),
    seed=st.integers(0, 1000),
)
def test_a_window_around_a_box_lies_in_the_picture_and_holds_the_box(size, corners, seed):
    (height, width), (x0, x1), (y0, y1) = size, sorted(corners[:2]), sorted(corners[2:])
    box = np.array([x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height])
    x, y, w, h = window_around(size, box, np.random.default_rng(seed))
    assert 0 <= x <= x + w <= width
    assert 0 <= y <= y + h <= height
    assert x <= box[0]
    assert y <= box[1]
    assert x + w >= min(box[0] + box[2], width) - 1e-6
    assert y + h >= min(box[1] + box[3], height) - 1e-6


def test_two_objects_of_a_picture_are_different_ones(data, cache):
    batch = batches(data, cache)[0]
    assert (batch.boxes[:, 0] != batch.boxes[:, 1]).any(dim=1).all()
    three = batches(data, cache, objects=3)[0]
    assert three.boxes.shape == (2, 3, 4)
    assert torch.equal(three.boxes[:, 0], three.boxes[:, 2])  # of two objects the first comes again
    assert not torch.equal(three.points[:, 0], three.points[:, 2])


def test_coverage_is_the_covered_part_of_each_cell():
    mask = np.zeros((32, 64), np.uint8)
    mask[4:16, 8:20] = 1
    coverage = cell_coverage(mask, Frame((32, 64), 32))  # half the size: 8 x 8 cells of 8 x 8 pixels
    expected = np.zeros((8, 8))
    expected[0, 1], expected[0, 2], expected[1, 1], expected[1, 2] = 0.5, 0.25, 1, 0.5
    np.testing.assert_allclose(coverage, expected, atol=0.01)
    assert coverage.dtype == np.float32


def test_small_objects_are_left_out(data, cache, monkeypatch):
    items = read_training_sets(data)["one"]
    parts = sorted(int(coco_mask.area(rle)) / max(item.size_hw) ** 2 for item in items for rle in item.rles)
    monkeypatch.setattr(cached_batches, "MIN_OBJECT_FRACTION", parts[3])
    made = EmbeddedBatches({"one": items}, settings_of(PluginTraining, steps=9), cache)
    seen = {(item.path, rle["counts"]) for item in made.schedule for rle in item.rles}
    assert len(seen) == 3


def test_data_without_objects_of_a_size_is_refused(data, cache, monkeypatch):
    monkeypatch.setattr(cached_batches, "MIN_OBJECT_FRACTION", 0.99)
    with pytest.raises(AnnotationError, match="sets one, two: expected objects of at least 99.0% of the input"):
        batches(data, cache)


def test_weights_without_their_set_are_refused(data, cache):
    with pytest.raises(ConfigError, match="set_weights: expected names among one, two, got three"):
        batches(data, cache, set_weights={"three": 2})
