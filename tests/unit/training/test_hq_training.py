"""Training of HQ-SAM's branch: the plugin's prompts, the HQ mask's loss, and a file for its own base only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stable_sam.config import RefinerConfig
from stable_sam.modeling.hq import attach_hq, build_hq
from stable_sam.modeling.load import load_model
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin
from stable_sam.training import rts
from stable_sam.training import train_hq as hq
from stable_sam.training.cached_batches import EmbeddedBatch, EmbeddedBatches
from stable_sam.training.dataset import read_training_sets
from stable_sam.training.embeddings import EmbeddingCache
from stable_sam.training.train_hq import hq_loss, train_hq
from stable_sam.training.training_config import FrozenBaseTraining, PluginTraining
from tests.model_parts import detach_plugin
from tests.unit.training.ellipses import metadata_of, settings_of, tensors_of, tiny


@pytest.fixture(scope="module")
def hq_run(data, tmp_path_factory):
    """The file of a branch trained on tiny, the branch before, the base before and after."""
    loaded = tiny()
    before = {name: value.clone() for name, value in loaded.sam.state_dict().items()}
    settings = settings_of(FrozenBaseTraining, learning_rate=0.01)
    torch.manual_seed(settings.seed)
    start = build_hq(loaded.sam).state_dict()
    file = train_hq(loaded, data, tmp_path_factory.mktemp("hq"), settings)
    return file, start, before, loaded.sam.state_dict()


def test_only_the_branch_learns(hq_run):
    file, start, before, after = hq_run
    assert all(torch.equal(after[name], value) for name, value in before.items())
    trained = tensors_of(file)
    assert trained.keys() == start.keys()
    moved = {name for name, value in start.items() if not torch.equal(trained[name], value)}
    assert moved == start.keys()
    assert all(value.isfinite().all() for value in trained.values())


def test_its_file_is_used_in_the_place_of_the_plugin(hq_run):
    file = hq_run[0]
    assert (metadata_of(file)["model"], metadata_of(file)["step"]) == ("tiny", "3")
    loaded = load_model(RefinerConfig(model="tiny", hq_uri=str(file), device="cpu"))
    assert loaded.hq is not None
    assert all(torch.equal(loaded.hq.state_dict()[name], value) for name, value in tensors_of(file).items())
    assert loaded.host is not None
    assert not loaded.host.enabled


def embedded_batch(model, data, folder, settings: FrozenBaseTraining) -> EmbeddedBatch:
    batches = EmbeddedBatches(read_training_sets(data), settings, EmbeddingCache(folder, model))
    batches.fill_cache()
    return batches[0].to(torch.device("cpu"))


def test_prompts_are_those_of_the_plugins_training(data, tmp_path, monkeypatch):
    model = tiny()
    model = replace(model, hq=attach_hq(model.sam, build_hq(model.sam)))
    asked: dict[str, list] = {"hq": [], "rts": []}
    for name, module in (("hq", hq), ("rts", rts)):
        real = module.decode_prompts

        def watched(sam, embeddings, name=name, real=real, **prompts):
            asked[name].append((prompts.get("boxes"), prompts.get("points")))
            return real(sam, embeddings, **prompts)

        monkeypatch.setattr(module, "decode_prompts", watched)
    for seed in range(4):
        settings = settings_of(PluginTraining, seed=seed)
        batch = embedded_batch(model, data, tmp_path, settings)
        hq_loss(model.sam, batch, settings, torch.Generator().manual_seed(seed))
        batch = replace(batch, features=replace(batch.features, early=None))
        attach_plugin(model.sam, StableSamPlugin(model.sam.prompt_encoder.embed_dim))
        rts.plugin_loss(model.sam, settings, batch, torch.Generator().manual_seed(seed), 1.0)
        detach_plugin(model.sam)
    assert len(asked["hq"]) == len(asked["rts"]) == 8
    for (boxes, points), (others, other_points) in zip(asked["hq"], asked["rts"], strict=True):
        if boxes is None:
            assert torch.equal(points[0], other_points[0])
        else:
            assert torch.equal(boxes, others)


def test_the_hq_mask_alone_is_supervised(data, tmp_path):
    """As published: SAM's mask, and so its error, is not in the loss."""
    model = tiny()
    model = replace(model, hq=attach_hq(model.sam, build_hq(model.sam)))
    settings = settings_of(FrozenBaseTraining)
    batch = embedded_batch(model, data, tmp_path, settings)
    losses = []
    for scale in (1.0, 5.0):
        with torch.no_grad():
            for mlp in model.sam.mask_decoder.output_hypernetworks_mlps:
                mlp.layers[-1].weight.mul_(scale)
        losses.append(hq_loss(model.sam, batch, settings, torch.Generator().manual_seed(0))[0])
    assert torch.equal(*losses)
