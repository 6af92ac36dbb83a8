"""Training of the base: what it moves, resume after a kill, resume within a stage, its start."""

from __future__ import annotations

import pytest
import torch

from stable_sam.errors import NotFoundError, WeightsError
from stable_sam.modeling.bases.nano import Backbone, build_nano
from stable_sam.modeling.load import load_model
from stable_sam.modeling.weights import save_weights
from stable_sam.training import train_base as base
from stable_sam.training.train_base import jitter_boxes, train_base
from stable_sam.training.training_config import BaseTraining
from tests.unit.training.ellipses import Killed, metadata_of, nano, same, settings_of, tensors_of, watch


def test_a_trained_base_loads_strictly(whole_run):
    file, seen = whole_run
    loaded = load_model(nano(file))
    assert loaded.host is None
    assert loaded.sam.input_side == 64
    assert [tuple(batch.images.shape) for batch in seen] == [(1, 3, 96, 96), (2, 3, 64, 64), (2, 3, 64, 64)]
    assert not torch.equal(seen[1].images, seen[2].images)
    metadata = metadata_of(file)
    assert (metadata["model"], metadata["size"], metadata["step"]) == ("nano", "64", "3")
    assert BaseTraining.model_validate_json(metadata["settings"]) == settings_of(BaseTraining)
    assert {value.dtype for value in tensors_of(file).values()} == {torch.float16}


def test_training_moves_every_part_of_the_base(whole_run):
    torch.manual_seed(3)
    untrained = build_nano(64).state_dict()
    trained = tensors_of(whole_run[0])
    assert trained.keys() == untrained.keys()
    moved = {key.split(".")[0] for key, value in trained.items() if not torch.equal(value, untrained[key].half())}
    assert moved == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert all(value.isfinite().all() for value in trained.values())


def test_a_killed_base_goes_on_where_its_checkpoint_is(whole_run, data, tmp_path, monkeypatch):
    """Within its second stage."""
    file, all_batches = whole_run
    with monkeypatch.context() as patch:
        watch(patch, base, "base_loss", kill_at=2)
        with pytest.raises(Killed):
            train_base(data, tmp_path, settings_of(BaseTraining))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    assert metadata_of(tmp_path / "nano.safetensors")["step"] == "2"
    (tmp_path / "checkpoint.partial").write_bytes(b"killed while writing")

    seen = watch(monkeypatch, base, "base_loss")
    resumed = tensors_of(train_base(data, tmp_path, settings_of(BaseTraining)))
    assert len(seen) == 1
    assert all(same(batch, expected) for batch, expected in zip(seen, all_batches[2:], strict=True))
    for key, value in tensors_of(file).items():
        torch.testing.assert_close(resumed[key].float(), value.float(), rtol=1e-3, atol=1e-4)


def test_an_encoder_gives_the_backbone_its_start(data, tmp_path):
    torch.manual_seed(9)
    backbone = Backbone()
    encoder = save_weights(backbone, tmp_path / "encoder.safetensors", {})
    settings = settings_of(
        BaseTraining, stages=[{"size": 64, "steps": 1, "batch_images": 1}], backbone_rate=0.0, weight_decay=0.0
    )
    trained = tensors_of(train_base(data, tmp_path / "out", settings, encoder_path=encoder))
    for key, value in tensors_of(encoder).items():
        torch.testing.assert_close(trained[f"image_encoder.backbone.{key}"], value)


def test_jitter_of_the_base_is_slight():
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0], [0.0, 0.0, 8.0, 4.0]]).repeat(100, 1, 1)
    moved = jitter_boxes(boxes, 64, torch.Generator().manual_seed(0)) - boxes
    assert (moved.abs() <= 20 / 1024 * 64 + 1e-5).all()
    assert moved[:, 0].abs().mean() > 0.5
    assert (boxes + moved >= 0).all()


def test_an_unusable_encoder_is_refused(data, tmp_path):
    with pytest.raises(NotFoundError, match=r"no\.safetensors"):
        train_base(data, tmp_path / "out", settings_of(BaseTraining), encoder_path=tmp_path / "no.safetensors")
    other = save_weights(torch.nn.Linear(2, 2), tmp_path / "other.safetensors", {})
    with pytest.raises(WeightsError, match=r"other\.safetensors: expected weights of a backbone of nano") as raised:
        train_base(data, tmp_path / "out", settings_of(BaseTraining), encoder_path=other)
    assert len(str(raised.value).splitlines()) == 1
