import hashlib
import subprocess
import sys

import pytest

from stable_sam import identity
from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError, StorageError, WeightsError
from stable_sam.identity import ModelIdentity, model_identity


@pytest.fixture
def files(tmp_path):
    (tmp_path / "base.pth").write_bytes(b"base")
    (tmp_path / "plugin.safetensors").write_bytes(b"plug")
    return {"checkpoint_uri": str(tmp_path / "base.pth"), "plugin_uri": str(tmp_path / "plugin.safetensors")}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_hash_covers_base_and_plugin(files):
    config = RefinerConfig(model="vit_b", dtype="bfloat16", **files)
    expected = ModelIdentity(model_id="vit_b+plugin", weights_sha256=sha256(b"baseplug"), dtype="bfloat16")
    assert model_identity(config) == expected


@pytest.mark.parametrize("without", [{"plugin": False}, {"plugin_uri": None}])
def test_without_plugin_the_hash_is_the_base_files(files, without):
    found = model_identity(RefinerConfig(model="vit_b", **{**files, **without}))
    assert (found.model_id, found.weights_sha256) == ("vit_b", sha256(b"base"))


def test_tiny_needs_no_files_and_knows_its_plugin():
    with_plugin, plain = (model_identity(RefinerConfig(model="tiny", plugin=plugin)) for plugin in (True, False))
    assert plain == ModelIdentity(model_id="tiny", weights_sha256=sha256(b"tiny"), dtype="float32")
    assert with_plugin.model_id == "tiny+plugin"
    assert with_plugin.weights_sha256 != plain.weights_sha256


def test_own_nano_base_does_not_take_the_bundled_plugin(files):
    config = RefinerConfig(model="nano", checkpoint_uri=files["checkpoint_uri"])
    assert model_identity(config).model_id == "nano"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "vit_b"}, ConfigError, "checkpoint_uri: vit_b needs"),
        ({"model": "vit_b", "checkpoint_uri": "/nowhere/sam.pth"}, StorageError, "/nowhere/sam.pth"),
        ({"model": "tiny", "checkpoint_uri": "x.pth"}, ConfigError, "tiny is random"),
    ],
)
def test_what_is_missing_is_named(settings, error, message):
    with pytest.raises(error, match=message) as raised:
        model_identity(RefinerConfig(**settings))
    assert "\n" not in str(raised.value)


def test_missing_bundled_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(identity, "files", lambda package: tmp_path)
    with pytest.raises(WeightsError, match=r"nano\.safetensors: expected the weights that come with"):
        model_identity(RefinerConfig())


def test_identity_never_imports_torch():
    code = "import sys, stable_sam.identity; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
