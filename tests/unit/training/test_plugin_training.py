"""Training of the plugin on a frozen base, from cached embeddings."""

from __future__ import annotations

import csv
import hashlib
import json
import sys

import pytest
import torch

from flows import cli
from stable_sam.errors import WeightsError
from stable_sam.modeling.bases.nano import build_nano
from stable_sam.modeling.decoder import decode_prompts
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.load import load_model
from stable_sam.modeling.plugin import StableSamPlugin, attach_plugin
from stable_sam.modeling.plugin_spec import PluginSpec
from stable_sam.modeling.weights import save_weights
from stable_sam.training.rts import mixed_boxes, routing_loss
from stable_sam.training.teach_routing import _scale_input
from stable_sam.training.train_plugin import train_plugin
from stable_sam.training.training_config import PluginTraining
from tests.model_parts import count_parameters, detach_plugin
from tests.unit.training.ellipses import metadata_of, nano, settings_of, tensors_of

SPEC = PluginSpec(hidden=8, max_offset=2.5, regular_below=0.5, estimates_quality=True)


@pytest.fixture(scope="module")
def plugin_run(whole_run, data, tmp_path_factory):
    """A plugin trained on the trained base: its file, the base before and after, the plugin before and after."""
    torch.set_num_threads(1)
    loaded = load_model(nano(whole_run[0]))
    before = {key: value.clone() for key, value in loaded.sam.state_dict().items()}
    settings = settings_of(PluginTraining, plugin=SPEC.model_dump(), learning_rate=0.01)
    folder = tmp_path_factory.mktemp("plugin")
    file = train_plugin(loaded, data, folder, settings)
    learning = {name for name, value in loaded.sam.named_parameters() if value.requires_grad}
    detach_plugin(loaded.sam)
    return file, before, loaded.sam.state_dict(), learning


def test_plugin_training_leaves_the_base_bit_for_bit(plugin_run):
    _, before, after, learning = plugin_run
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert learning
    assert all(".plugin." in name for name in learning)


def test_plugin_training_moves_the_plugin(plugin_run):
    torch.manual_seed(3)
    start = StableSamPlugin(256, SPEC)
    trained = tensors_of(plugin_run[0])
    assert trained.keys() == start.state_dict().keys()
    assert sum(value.numel() for value in trained.values()) == count_parameters(start)
    moved = {key for key, value in start.state_dict().items() if not torch.equal(trained[key], value)}
    assert {"sampling.offset.weight", "sampling.project.weight", "routing.route.weight"} <= moved
    assert all(value.isfinite().all() for value in trained.values())


def test_the_first_steps_teach_quality_alone(whole_run, data, tmp_path):
    """The offset network's last layer is not in its way, so nothing moves it; what quality reads moves."""
    loaded = load_model(nano(whole_run[0]))
    file = train_plugin(loaded, data, tmp_path, settings_of(PluginTraining, quality_share=0.99, learning_rate=0.01))
    trained = tensors_of(file)
    assert not trained["sampling.offset.weight"].any()
    torch.manual_seed(3)
    start = StableSamPlugin(256, PluginTraining().plugin).state_dict()
    assert not torch.equal(trained["routing.quality.weight"], start["routing.quality.weight"])
    with (tmp_path / "log.csv").open(newline="") as stream:
        assert "quality_loss" in next(csv.reader(stream))


def test_alpha_opens_where_the_expected_gain_is_worth_more_than_the_harm():
    """Of prompts that look alike, so that they share one alpha; a loss counts twice, and a gain from 0.02 on."""
    for gains, opens in (([0.2, -0.02, -0.02], True), ([0.08, 0.02, -0.05], False), ([0.01, 0.015], False)):
        gain = torch.tensor(gains)
        alphas = torch.linspace(0.01, 0.99, 99)
        losses = torch.stack([routing_loss(alpha.expand(len(gain)), gain) for alpha in alphas])
        assert (alphas[losses.argmin()] > 0.5) == opens


def test_the_routing_is_taught_last_and_alone(whole_run, data, tmp_path, monkeypatch):
    """Where nobody teaches it, everything else is the same."""
    settings = settings_of(PluginTraining, routing_steps=4)
    taught = tensors_of(train_plugin(load_model(nano(whole_run[0])), data, tmp_path / "taught", settings))
    monkeypatch.setattr("stable_sam.training.train_plugin.teach_routing", lambda *_: {})
    left = tensors_of(train_plugin(load_model(nano(whole_run[0])), data, tmp_path / "left", settings))
    changed = {name for name, value in left.items() if not torch.equal(taught[name], value)}
    assert changed
    assert {name.split(".")[1] for name in changed} <= {"reduce", "norm", "route", "quality"}
    metrics = json.loads(metadata_of(tmp_path / "taught" / "plugin.safetensors")["metrics"])
    assert metrics["routed_gain"] <= metrics["best_gain"]


def test_scaling_a_layers_input_is_undone_by_its_inverse():
    layer, x = torch.nn.Linear(5, 3), torch.randn(7, 5)
    before, scale, shift = layer(x), torch.rand(5) + 0.5, torch.randn(5)
    _scale_input(layer, scale, shift)
    torch.testing.assert_close(layer((x - shift) / scale), before)
    _scale_input(layer, 1 / scale, -shift / scale)
    torch.testing.assert_close(layer(x), before)


def test_the_mask_does_not_move_alpha_and_every_prompt_takes_the_deformed_path(whole_run):
    """In training by gain: alpha learns from the gain alone, which must be known of closed prompts, too."""
    loaded = load_model(nano(whole_run[0]))
    plugin = StableSamPlugin(256, PluginSpec(regular_below=0.5, initial_dsp_weight=0.1))
    plugin.always_deforms = True
    attach_plugin(loaded.sam, plugin)
    features, box = ImageFeatures(torch.randn(1, 256, 4, 4)), torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    decode_prompts(loaded.sam, features, boxes=box).logits.sum().backward()
    assert plugin.sampling.project.weight.grad.abs().sum() > 0
    assert plugin.routing.route.weight.grad is None


def test_a_trained_plugin_fits_its_own_base_only(plugin_run, whole_run, tmp_path):
    file, base_file = plugin_run[0], whole_run[0]
    metadata = metadata_of(file)
    assert metadata["base_sha256"] == hashlib.sha256(base_file.read_bytes()).hexdigest()
    assert PluginSpec.model_validate_json(metadata["plugin"]) == SPEC
    loaded = load_model(nano(base_file, plugin=True, plugin_uri=str(file)))
    assert loaded.host is not None
    state = loaded.host.plugin.state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors_of(file).items())

    other = save_weights(build_nano(64, fine=False), tmp_path / "other.safetensors", {"size": "64"})
    with pytest.raises(WeightsError, match=r"plugin\.safetensors: this plugin was trained on the base .*other"):
        load_model(nano(other, plugin=True, plugin_uri=str(file)))


def test_the_plugins_file_says_how_it_came_about(plugin_run):
    file = plugin_run[0]
    metadata = metadata_of(file)
    assert (metadata["model"], metadata["step"], metadata["data"]) == ("nano", "3", "one, two")
    assert PluginTraining.model_validate_json(metadata["settings"]).plugin == SPEC
    metrics = json.loads(metadata["metrics"])
    assert metrics["loss"] > 0
    assert 0 <= metrics["box_iou"] <= 1
    assert {value.dtype for value in tensors_of(file).values()} == {torch.float32}


def test_a_training_continues_from_a_plugin_with_its_architecture(plugin_run, whole_run, data, tmp_path):
    """A learning rate of almost nothing leaves the plugin where it was, which a new one is not."""
    loaded, start = load_model(nano(whole_run[0])), plugin_run[0]
    settings = settings_of(PluginTraining, steps=1, learning_rate=1e-9)
    file = train_plugin(loaded, data, tmp_path / "next", settings, start_uri=str(start))
    assert PluginSpec.model_validate_json(metadata_of(file)["plugin"]) == SPEC
    for key, value in tensors_of(file).items():
        if key.startswith("sampling."):  # the routing is taught anew at the end
            torch.testing.assert_close(value, tensors_of(start)[key], atol=1e-6, rtol=0)

    other = save_weights(build_nano(64, fine=False), tmp_path / "other.safetensors", {"size": "64"})
    with pytest.raises(WeightsError, match=r"plugin\.safetensors: this plugin was trained on the base"):
        train_plugin(load_model(nano(other)), data, tmp_path / "refused", settings, start_uri=str(start))


def test_a_checkpoint_of_another_base_is_refused(whole_run, data, tmp_path):
    """Also in the same folder and of the same shape, the plugin of another base is another run."""
    other = save_weights(build_nano(64, fine=False), tmp_path / "other.safetensors", {"size": "64"})
    settings = settings_of(PluginTraining, steps=1)
    train_plugin(load_model(nano(other)), data, tmp_path / "out", settings)
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: not a checkpoint of this training.*the base"):
        train_plugin(load_model(nano(whole_run[0])), data, tmp_path / "out", settings)


# The command line


def run_cli(monkeypatch, capsys, *arguments: object) -> tuple[object, str, str]:
    """Exit code (None: none was needed), stdout and stderr of `stable-sam`."""
    monkeypatch.setattr(sys, "argv", ["stable-sam", *map(str, arguments)])
    code = None
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_train_plugin_from_the_command_line(data, tmp_path, monkeypatch, capsys):
    """One epoch of six pictures in two steps, then another run with the same embeddings."""
    config = tmp_path / "settings.yaml"
    config.write_text("{batch_images: 3, objects: 1}")
    options = ["--data", data, "--model", "tiny", "--config", config, "--cache", tmp_path / "cache"]
    code, out, _ = run_cli(monkeypatch, capsys, "train", "plugin", "--out", tmp_path / "one", *options)
    assert (code, out) == (0, f"{tmp_path}/one/plugin.safetensors\n")
    assert metadata_of(tmp_path / "one" / "plugin.safetensors")["step"] == "2"
    stored = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(stored) == 6
    again = ["--out", tmp_path / "two", *options, "--steps", 3, "--plugin", tmp_path / "one" / "plugin.safetensors"]
    assert run_cli(monkeypatch, capsys, "train", "plugin", *again)[0] == 0
    assert metadata_of(tmp_path / "two" / "plugin.safetensors")["step"] == "3"
    assert {file: file.stat().st_mtime_ns for file in stored} == stored
    assert not (tmp_path / "two" / "embeddings").exists()


@pytest.mark.parametrize("command", ["evaluate", "refine-image"])
def test_a_plugin_of_another_base_is_refused_in_one_line(command, plugin_run, data, tmp_path, monkeypatch, capsys):
    """The bundled base with the plugin of the base that was trained here."""
    options = {
        "evaluate": ["--data", data, "--out", tmp_path / "results.json"],
        "refine-image": [data / "one" / "images" / "0.png", "--out", tmp_path / "mask.png", "--box", 4, 4, 50, 50],
    }
    code, out, err = run_cli(monkeypatch, capsys, command, *options[command], "--plugin", plugin_run[0])
    assert len(err.strip().splitlines()) == 1, err
    line = err.strip()
    assert (code, out) == (2, "")
    assert line.startswith(f"error: {plugin_run[0]}: this plugin was trained on the base ")
    assert "nano.safetensors" in line
    assert list(tmp_path.iterdir()) == []


# Prompts


def test_noise_of_the_training_boxes():
    boxes = torch.tensor([[10.0, 20.0, 50.0, 40.0]]).repeat(500, 1)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(mixed_boxes(boxes, (0.0,), 64, generator), boxes)
    noisy = mixed_boxes(boxes, (0.0, 0.4), 64, generator)
    untouched = (noisy == boxes).all(dim=1).float().mean()
    assert 0.4 < untouched < 0.6
    assert ((noisy - boxes).abs() <= 0.4 * torch.tensor([40.0, 20, 40, 20]) + 1e-4).all()
    wild = mixed_boxes(boxes, (1.0,), 64, generator)
    assert (wild >= 0).all()
    assert (wild <= 64).all()
    assert (wild[:, 2:] > wild[:, :2]).all()
