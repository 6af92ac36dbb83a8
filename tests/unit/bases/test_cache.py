"""What is in the cache folder is found by the name of the base alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stable_sam.bases import BASES, PublishedFile
from stable_sam.bases.cache import cache_folder, cached_file, cached_plugin, needed_file, plugin_path
from stable_sam.errors import ConfigError

SMALL = replace(
    BASES["vit_b"],
    file=PublishedFile(name="base.pth", url="https://x.invalid/base.pth", size=4, sha256="ab" * 32),
    hq_file=PublishedFile(name="hq.pth", url="https://x.invalid/hq.pth", size=2, sha256="cd" * 32),
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STABLE_SAM_MODELS", str(tmp_path))
    return tmp_path


def test_without_the_variable_the_folder_is_in_the_user_s_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STABLE_SAM_MODELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "stable-sam" / "models"


def test_only_a_whole_file_is_there(folder: Path) -> None:
    assert SMALL.file is not None
    for content in (b"bas", b"base!"):
        (folder / "base.pth").write_bytes(content)
        assert cached_file(SMALL.file) is None
    (folder / "base.pth").write_bytes(b"base")
    assert cached_file(SMALL.file) == needed_file(SMALL) == folder / "base.pth"


@pytest.mark.parametrize(
    ("hq", "message"),
    [
        (
            False,
            "model: vit_b is not on this machine; run: stable-sam models get vit_b (375 MB, Apache-2.0), or name a "
            "file as checkpoint_uri",
        ),
        (
            True,
            "hq_uri: HQ-SAM of vit_b is not on this machine; run: stable-sam models get vit_b --hq (379 MB, "
            "Apache-2.0), or name a file as hq_uri",
        ),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_downloads_it(hq: bool, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        needed_file(BASES["vit_b"], hq=hq)
    assert str(raised.value) == message


@pytest.mark.parametrize(("name", "hq"), [("nano", False), ("sam2.1_t", True)])
def test_what_is_not_published_cannot_be_needed(name: str, hq: bool) -> None:
    with pytest.raises(ConfigError, match=f"^model: expected a base .*, got {name}; `stable-sam models` lists"):
        needed_file(BASES[name], hq=hq)


def test_a_plugin_is_found_by_the_hash_of_its_base(folder: Path) -> None:
    assert plugin_path(SMALL) == folder / "plugin_abababababababab.safetensors"
    assert cached_plugin(SMALL) is None
    (folder / "plugin_abababababababab.safetensors").write_bytes(b"plugin")
    assert cached_plugin(SMALL) == plugin_path(SMALL)
    assert plugin_path(BASES["nano"]) is None


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    BASES["vit_t"].check_extra()
    monkeypatch.setattr("stable_sam.bases.base.find_spec", lambda module: None)
    BASES["vit_b"].check_extra()
    message = "^model: vit_t needs timm, which is not installed; run: pip install 'stable-sam\\[timm\\]'$"
    with pytest.raises(ConfigError, match=message):
        BASES["vit_t"].check_extra()


def test_nothing_about_bases_imports_torch_or_the_extras() -> None:
    code = (
        "import sys, stable_sam.bases.download; from stable_sam.bases import BASES; BASES['vit_t'].check_extra(); "
        "print([name for name in ('torch', 'timm', 'pydantic') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "[]"
