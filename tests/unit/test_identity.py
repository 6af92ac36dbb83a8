import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest

from stable_sam import identity
from stable_sam.bases import BASES, PublishedFile
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


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """A cache folder with small files in the places of vit_b, its HQ-SAM and its plugin."""
    monkeypatch.setenv("STABLE_SAM_MODELS", str(tmp_path / "models"))
    small = replace(
        BASES["vit_b"],
        file=PublishedFile(name="sam.pth", url="https://x.invalid/sam.pth", size=4, sha256=sha256(b"base")),
        hq_file=PublishedFile(name="hq.pth", url="https://x.invalid/hq.pth", size=2, sha256=sha256(b"hq")),
    )
    monkeypatch.setitem(BASES, "vit_b", small)
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "sam.pth").write_bytes(b"base")
    (folder / "hq.pth").write_bytes(b"hq")
    (folder / f"plugin_{sha256(b'base')[:16]}.safetensors").write_bytes(b"plug")


@pytest.mark.parametrize(
    ("settings", "model_id", "content"),
    [
        ({}, "vit_b+plugin", b"baseplug"),
        ({"plugin": False}, "vit_b", b"base"),
        ({"plugin": False, "hq_uri": "published"}, "vit_b+hq", b"basehq"),
    ],
)
def test_a_downloaded_base_is_found_with_its_plugin_and_hq_sam(downloaded, settings, model_id, content):
    found = model_identity(RefinerConfig(model="vit_b", **settings))
    assert (found.model_id, found.weights_sha256) == (model_id, sha256(content))


def test_a_downloaded_base_is_the_model_that_its_file_is_as_a_checkpoint(downloaded, files):
    assert model_identity(RefinerConfig(model="vit_b")) == model_identity(RefinerConfig(model="vit_b", **files))


def test_a_given_base_does_not_take_the_plugin_of_the_downloaded_one(downloaded, files):
    config = RefinerConfig(model="vit_b", checkpoint_uri=files["checkpoint_uri"])
    assert model_identity(config).model_id == "vit_b"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "vit_b"}, ConfigError, "run: stable-sam models get vit_b "),
        ({"model": "nano", "hq_uri": "published"}, ConfigError, "expected a base with a published HQ-SAM, got nano"),
        ({"model": "vit_b", "checkpoint_uri": "/nowhere/sam.pth"}, StorageError, "/nowhere/sam.pth"),
        ({"model": "tiny", "checkpoint_uri": "x.pth"}, ConfigError, "tiny is random"),
    ],
)
def test_what_is_missing_is_named(settings, error, message):
    with pytest.raises(error, match=message) as raised:
        model_identity(RefinerConfig(**settings))
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_named_before_any_weights_are_read(monkeypatch):
    monkeypatch.setattr("stable_sam.bases.base.find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=r"^model: vit_t needs timm, .*run: pip install 'stable-sam\[timm\]'$"):
        model_identity(RefinerConfig(model="vit_t", checkpoint_uri="/nowhere/mobile_sam.pt"))


def test_missing_bundled_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(identity, "files", lambda package: tmp_path)
    with pytest.raises(WeightsError, match=r"nano\.safetensors: expected the weights that come with"):
        model_identity(RefinerConfig())


def test_identity_never_imports_torch():
    code = "import sys, stable_sam.identity; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
