"""Loading is strict: every key, every shape, a plugin only on its own base, and one line that says what is wrong."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from segment_anything import sam_model_registry

from stable_sam.bases import BASES, PublishedFile
from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError, WeightsError
from stable_sam.modeling.bases.nano import build_nano
from stable_sam.modeling.bases.tiny import build_tiny
from stable_sam.modeling.load import load_model, resolve_device
from stable_sam.modeling.plugin import PluginHost, StableSamPlugin
from stable_sam.modeling.plugin_spec import PluginSpec
from stable_sam.modeling.weights import save_weights

SPEC = PluginSpec(hidden=8, max_offset=2.0)


@pytest.fixture(scope="module")
def nano_file(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    return save_weights(
        build_nano(128), tmp_path_factory.mktemp("nano") / "nano.safetensors", {"size": "128", "fine": "1"}
    )


@pytest.fixture
def plugin_file(nano_file, tmp_path) -> Path:
    metadata = {"base_sha256": hashlib.sha256(nano_file.read_bytes()).hexdigest(), "plugin": SPEC.model_dump_json()}
    return save_weights(StableSamPlugin(256, SPEC), tmp_path / "plugin.safetensors", metadata)


@pytest.fixture
def tiny_vit(monkeypatch) -> None:
    """`vit_b` without its 360 MB: the registry's entry is exchanged, its reading of official checkpoints is not."""
    monkeypatch.setitem(sam_model_registry, "vit_b", lambda checkpoint: build_tiny())


def nano(checkpoint: Path, **settings) -> RefinerConfig:
    return RefinerConfig(model="nano", checkpoint_uri=str(checkpoint), device="cpu", **settings)


def test_nano_is_loaded_in_float32_frozen_at_the_size_its_file_names(nano_file):
    loaded = load_model(nano(nano_file))
    assert loaded.host is None
    assert loaded.sam.input_side == 128
    assert loaded.identity.weights_sha256 == hashlib.sha256(nano_file.read_bytes()).hexdigest()
    state = loaded.sam.state_dict()
    stored = load(nano_file.read_bytes())
    assert all(torch.equal(state[key], value.float()) for key, value in stored.items())
    assert all(value.dtype == torch.float32 for value in state.values())
    assert not loaded.sam.training
    assert not any(p.requires_grad for p in loaded.sam.parameters())


def test_plugin_is_attached_with_the_shape_its_file_names(nano_file, plugin_file):
    loaded = load_model(nano(nano_file, plugin_uri=str(plugin_file)))
    assert isinstance(loaded.host, PluginHost)
    assert loaded.host.plugin.sampling.max_offset == 2.0
    assert loaded.host.plugin.routing.reduce.out_features == 8
    assert not any(p.requires_grad for p in loaded.sam.parameters())
    assert not loaded.host.plugin.training


def test_a_plugin_of_another_base_beside_a_downloaded_base_is_refused(tiny_vit, plugin_file, tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_SAM_MODELS", str(tmp_path))
    torch.save(build_tiny().state_dict(), tmp_path / "sam.pth")
    data = (tmp_path / "sam.pth").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    file = PublishedFile(name="sam.pth", url="https://x.invalid/sam.pth", size=len(data), sha256=sha256)
    monkeypatch.setitem(BASES, "vit_b", replace(BASES["vit_b"], file=file))
    name = f"plugin_{sha256[:16]}.safetensors"
    (tmp_path / name).write_bytes(plugin_file.read_bytes())
    with pytest.raises(WeightsError, match=rf"{name}: this plugin was trained on .*sam\.pth \({sha256[:16]}\)$"):
        load_model(RefinerConfig(model="vit_b", device="cpu"))


def test_plugin_of_another_base_is_refused(nano_file, plugin_file, tmp_path):
    tensors = load(plugin_file.read_bytes())
    other = tmp_path / "other.safetensors"
    other.write_bytes(save(tensors, {"base_sha256": "0" * 64, "plugin": SPEC.model_dump_json()}))
    with pytest.raises(WeightsError, match=r"other\.safetensors: .*trained on the base 0000.*nano\.safetensors"):
        load_model(nano(nano_file, plugin_uri=str(other)))


def test_plugin_without_its_shape_is_refused(nano_file, plugin_file, tmp_path):
    tensors = load(plugin_file.read_bytes())
    other = tmp_path / "other.safetensors"
    other.write_bytes(save(tensors, {"base_sha256": hashlib.sha256(nano_file.read_bytes()).hexdigest()}))
    with pytest.raises(WeightsError, match=r"other\.safetensors: expected metadata plugin"):
        load_model(nano(nano_file, plugin_uri=str(other)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("mask_decoder.iou_token.weight"), r"1 missing \(mask_decoder\.iou_token\.weight\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unknown \(extra\)"),
        (
            lambda state: state.update({"mask_decoder.iou_token.weight": torch.zeros(2, 256)}),
            r"1 mis-shaped \(mask_decoder\.iou_token\.weight \(2, 256\) instead of \(1, 256\)\)",
        ),
    ],
)
def test_other_keys_or_shapes_are_refused_in_one_line(nano_file, tmp_path, change, message):
    state = load(nano_file.read_bytes())
    change(state)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(save(state, {"size": "128", "fine": "1"}))
    with pytest.raises(
        WeightsError, match=r"broken\.safetensors: expected the weights of nano, got " + message
    ) as raised:
        load_model(nano(broken))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", ["100", "big"])
def test_an_impossible_input_size_is_refused(nano_file, tmp_path, size):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(save(load(nano_file.read_bytes()), {"size": size, "fine": "1"}))
    with pytest.raises(WeightsError, match=r"broken\.safetensors: metadata"):
        load_model(nano(broken))


def test_official_checkpoint_is_loaded_strictly(tiny_vit, tmp_path):
    state = {key: value + 1 for key, value in build_tiny().state_dict().items()}
    torch.save(state, tmp_path / "sam.pth")
    loaded = load_model(RefinerConfig(model="vit_b", checkpoint_uri=str(tmp_path / "sam.pth")))
    assert all(torch.equal(value, state[key]) for key, value in loaded.sam.state_dict().items())
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match="1 missing"):
        load_model(RefinerConfig(model="vit_b", checkpoint_uri=str(tmp_path / "sam.pth")))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_files_of_another_kind_are_refused_in_one_line(tiny_vit, tmp_path, content):
    for name, model in (("sam.pth", "vit_b"), ("nano.safetensors", "nano")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name) as raised:
            load_model(RefinerConfig(model=model, checkpoint_uri=str(tmp_path / name)))
        assert "\n" not in str(raised.value)


def test_a_checkpoint_that_is_no_mapping_of_tensors_is_refused(tiny_vit, tmp_path):
    torch.save([1, 2], tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match=r"sam\.pth: expected a SAM checkpoint .* got list"):
        load_model(RefinerConfig(model="vit_b", checkpoint_uri=str(tmp_path / "sam.pth")))


def test_tiny_is_the_same_model_every_time():
    first, second = (load_model(RefinerConfig(model="tiny")).sam.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any("plugin" in key for key in first)
    assert load_model(RefinerConfig(model="tiny", plugin=False)).host is None


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ConfigError, match=f"device: .*'{name}'") as raised:
        resolve_device(name)
    assert "\n" not in str(raised.value)
