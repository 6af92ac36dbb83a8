"""The embedding cache: what it holds, when a picture is encoded, and what spoils a file."""

from __future__ import annotations

import hashlib
from collections import namedtuple
from dataclasses import replace

import cv2
import pytest
import torch

from stable_sam.errors import ImageError, StorageError
from stable_sam.modeling.hq import attach_hq, build_hq
from stable_sam.refining.predict import embed_image
from stable_sam.training.dataset import read_image, read_training_sets
from stable_sam.training.embeddings import EmbeddingCache
from tests.unit.training.ellipses import Killed, tiny, write_set


class Encoder:
    """The tiny model, its encoder counted and killed in the call with number `kill_at`, from 0."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.model = tiny()
        self.calls = 0
        self.kill_at = kill_at
        self.model.sam.image_encoder.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        if self.calls == self.kill_at:
            raise Killed
        self.calls += 1

    def fill(self, folder, items) -> int:
        """Fill a cache in `folder` and return how often the encoder ran."""
        before = self.calls
        EmbeddingCache(folder, self.model).fill(items)
        return self.calls - before


@pytest.fixture
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_set(folder / "one", 0, "images", "{}")
    return read_training_sets(folder)["one"]


def test_each_picture_is_encoded_once(items, tmp_path):
    assert Encoder().fill(tmp_path / "cache", items) == 3
    assert Encoder().fill(tmp_path / "cache", items) == 0
    assert Encoder().fill(tmp_path / "elsewhere", items[:1]) == 1


def test_an_embedding_is_that_of_inference_in_half_precision(items, tmp_path):
    model = tiny()
    cache = EmbeddingCache(tmp_path, model)
    cache.fill(items)
    for item in items:
        stored = cache.read(item)
        assert stored.early is None
        expected = embed_image(model, read_image(item.path)).features.embedding
        assert torch.equal(stored.embedding, expected.half())


def test_encoding_goes_on_after_a_kill(items, tmp_path):
    with pytest.raises(Killed):
        Encoder(kill_at=2).fill(tmp_path, items)
    assert Encoder().fill(tmp_path, items) == 1


def test_a_changed_picture_is_encoded_anew(items, tmp_path):
    encoder = Encoder()
    cache = EmbeddingCache(tmp_path / "cache", encoder.model)
    cache.fill(items)
    before = cache.read(items[1]).embedding
    cv2.imwrite(str(items[1].path), 255 - read_image(items[1].path)[:, :, ::-1])
    assert encoder.fill(tmp_path / "cache", items) == 1
    after = cache.read(items[1]).embedding
    assert torch.equal(after, embed_image(encoder.model, read_image(items[1].path)).features.embedding.half())
    assert not torch.equal(after, before)
    assert len(list(cache.folder.iterdir())) == 3  # in the place of the old ones


@pytest.mark.parametrize("changed", [{"weights_sha256": "0" * 64}, {"dtype": "bfloat16"}])
def test_other_weights_or_arithmetic_have_embeddings_of_their_own(items, tmp_path, changed):
    encoder = Encoder()
    assert encoder.fill(tmp_path, items) == 3
    encoder.model = replace(encoder.model, identity=replace(encoder.model.identity, **changed))
    assert encoder.fill(tmp_path, items) == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_another_base_of_the_same_first_digits_is_not_mistaken(items, tmp_path):
    encoder = Encoder()
    encoder.fill(tmp_path, items)
    digits = encoder.model.identity.weights_sha256[:16] + "0" * 48
    encoder.model = replace(encoder.model, identity=replace(encoder.model.identity, weights_sha256=digits))
    assert encoder.fill(tmp_path, items) == 3


@pytest.mark.parametrize("part", [0, 5, 0.5])
def test_a_broken_file_is_made_again(items, tmp_path, part):
    encoder = Encoder()
    encoder.fill(tmp_path, items)
    cache = EmbeddingCache(tmp_path, encoder.model)
    before = cache.read(items[0]).embedding
    file = cache.folder / f"{hashlib.sha256(str(items[0].path.resolve()).encode()).hexdigest()[:32]}.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content)) if part < 1 else int(part)])
    assert encoder.fill(tmp_path, items) == 1
    assert torch.equal(cache.read(items[0]).embedding, before)


def test_a_file_that_breaks_during_training_is_named(items, tmp_path):
    cache = EmbeddingCache(tmp_path, tiny())
    cache.fill(items)
    for file in cache.folder.iterdir():
        file.write_bytes(b"")
    with pytest.raises(
        StorageError, match=r"safetensors: the embedding of .*0\.png is lost, start the training again"
    ) as raised:
        cache.read(items[0])
    assert len(str(raised.value).splitlines()) == 1


def test_too_small_a_disk_is_refused_before_anything_is_written(items, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(9, 9, 1000))
    cache = EmbeddingCache(tmp_path, tiny())
    with pytest.raises(StorageError, match="expected 0.00 GB of free disk for embeddings"):
        cache.fill(items)
    assert list(cache.folder.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_named(items, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(StorageError, match="cache/.*: expected a folder for embeddings") as raised:
        EmbeddingCache(tmp_path / "cache", tiny()).fill(items)
    assert len(str(raised.value).splitlines()) == 1


def test_a_picture_that_went_is_named(items, tmp_path):
    items[2].path.unlink()
    with pytest.raises(ImageError, match=r"2\.png: expected a training image"):
        EmbeddingCache(tmp_path, tiny()).fill(items)


def test_early_features_are_stored_where_the_base_has_hq_sam(items, tmp_path):
    """An embedding without them is made again with them, and then serves both trainings."""
    plain, hq = Encoder(), Encoder()
    hq.model = replace(hq.model, hq=attach_hq(hq.model.sam, build_hq(hq.model.sam)))
    assert plain.fill(tmp_path, items) == 3
    assert hq.fill(tmp_path, items) == 3
    assert plain.fill(tmp_path, items) == 0
    stored = EmbeddingCache(tmp_path, hq.model).read(items[0])
    view = embed_image(hq.model, read_image(items[0].path))
    assert torch.equal(stored.early, view.features.early.half())
    assert EmbeddingCache(tmp_path, plain.model).read(items[0]).early is None
