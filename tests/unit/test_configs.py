"""The config files that come with the project are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_sam.config import RunConfig
from stable_sam.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(("name", "model"), [("demo", "nano"), ("gpu", "vit_l"), ("nightly", "nano")])
def test_a_run_configuration_loads(name: str, model: str) -> None:
    assert RunConfig.from_yaml(CONFIGS / f"{name}.yaml").refiner.model == model


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ConfigError, match="^run.yaml: refiner.modle: unknown key, got 'nano'$"):
        RunConfig.from_dict({"refiner": {"modle": "nano"}}, source="run.yaml")


def test_the_section_that_was_called_quality_is_still_read() -> None:
    old, new = ({name: {"min_nights": 5}} for name in ("quality", "regression"))
    assert RunConfig.from_dict(old) == RunConfig.from_dict(new)
    with pytest.raises(ConfigError, match="quality"):
        RunConfig.from_dict(old | new)
