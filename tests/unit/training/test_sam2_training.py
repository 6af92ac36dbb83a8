"""Training of the plugin on SAM 2.1, from the command line to a plugin that moves masks on its own base only."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import yaml

from flows import cli
from stable_sam.config import RefinerConfig
from stable_sam.errors import WeightsError
from stable_sam.modeling.load import LoadedModel, load_model
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin
from stable_sam.refining.predict import PromptArrays, embed_image, predict
from stable_sam.training.cached_batches import EmbeddedBatches
from stable_sam.training.dataset import read_training_sets
from stable_sam.training.embeddings import EmbeddingCache
from stable_sam.training.rts import plugin_loss
from stable_sam.training.training_config import PluginTraining
from tests.unit.modeling.bases.small_sam2 import build_small_sam2, use_small_sam2, write_published
from tests.unit.training.ellipses import metadata_of

STEPS = 60
SETTINGS = {"batch_images": 6, "windows": 0, "plugin": {"regular_below": 0}}
"""Six whole pictures in a step, which are all, and a plugin without a regular path."""


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The base's file, the plugin's, and the folder of the embeddings."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sam2")
    base = write_published(build_small_sam2(), folder / "sam2.pt")
    config = folder / "settings.yaml"
    config.write_text(yaml.safe_dump({"learning_rate": 0.01, "warmup_steps": 1, "ema": 0.5, **SETTINGS}))
    options = ["--model", "sam2.1_t", "--checkpoint", base, "--cache", folder / "cache", "--steps", STEPS]
    with pytest.MonkeyPatch.context() as patch:
        use_small_sam2(patch)
        arguments = ["train", "plugin", "--data", data, "--out", folder, "--config", config, *options]
        patch.setattr(sys, "argv", ["stable-sam", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    return base, folder / "plugin.safetensors", folder / "cache"


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    use_small_sam2(monkeypatch)


def loaded(base, **changes) -> LoadedModel:
    return load_model(RefinerConfig(model="sam2.1_t", checkpoint_uri=str(base), device="cpu", **changes))


def test_embeddings_are_stored_with_their_fine_features(trained, data):
    base, _, folder = trained
    cache = EmbeddingCache(folder, loaded(base))
    for item in (item for some in read_training_sets(data).values() for item in some):
        stored = cache.read(item)
        shapes = [tuple(part.shape) for part in (*stored.fine, stored.embedding)]
        assert shapes == [(1, 4, 16, 16), (1, 8, 8, 8), (1, 32, 4, 4)]


def test_the_loss_falls(trained, data):
    """Of all pictures, from a fresh plugin to the trained one."""
    base, file, folder = trained
    fresh, after = loaded(base), loaded(base, plugin_uri=str(file))
    config = PluginTraining.from_dict({"steps": 1, **SETTINGS})
    batch = EmbeddedBatches(read_training_sets(data), config, EmbeddingCache(folder, loaded(base)))[0]
    torch.manual_seed(0)
    attach_plugin(fresh.sam, StableSamPlugin(32, config.plugin))
    losses = []
    for model in (fresh, after):
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            losses.append(plugin_loss(model.sam, config, batch.to(model.device), generator, 1.0)[0].item())
    assert losses[1] < 0.95 * losses[0]


def test_the_plugin_moves_masks_and_gives_them_back_when_it_is_off(trained):
    base, file, _ = trained
    assert metadata_of(file)["model"] == "sam2.1_t"
    plain, model = loaded(base), loaded(base, plugin_uri=str(file))
    image = np.random.default_rng(0).integers(0, 256, (48, 72, 3), dtype=np.uint8)
    box = PromptArrays(boxes_xyxy=np.array([[5.0, 6.0, 60.0, 40.0]]))
    expected = predict(plain, embed_image(plain, image), box, 1)
    view = embed_image(model, image)
    moved = predict(model, view, box, 1)
    assert np.abs(moved.logits - expected.logits).max() > 1e-3
    assert moved.dsp_weight > 0
    assert model.host is not None
    model.host.enabled = False
    np.testing.assert_array_equal(predict(model, view, box, 1).logits, expected.logits)


def test_it_is_refused_on_another_base(trained, tmp_path):
    other = write_published(build_small_sam2(seed=1), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"plugin\.safetensors: this plugin was trained on the base .*other\.pt"):
        loaded(other, plugin_uri=str(trained[1]))
