"""What would make a run fail is said before Prefect starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError, WeightsError
from stable_sam.runs.preflight import check_weights


def test_a_base_without_its_checkpoint_is_refused_although_its_plugin_is_there(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.safetensors"
    plugin.write_bytes(b"weights")
    with pytest.raises(ConfigError, match="^model: vit_b is not on this machine; run: stable-sam models get vit_b"):
        check_weights(RefinerConfig(model="vit_b", plugin_uri=str(plugin)))


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="gone.pth: no such weights file; correct its path or URI"):
        check_weights(RefinerConfig(model="vit_b", checkpoint_uri=str(tmp_path / "gone.pth")))


@pytest.mark.parametrize("model", ["nano", "tiny"])
def test_models_without_given_weights_pass(model: str) -> None:
    check_weights(RefinerConfig(model=model))
