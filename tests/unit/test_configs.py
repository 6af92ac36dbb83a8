"""The configuration files that come with the project are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_sam.config import RunConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(("name", "model"), [("demo", "nano"), ("gpu", "vit_l"), ("nightly", "nano")])
def test_a_run_configuration_loads(name: str, model: str) -> None:
    assert RunConfig.from_yaml(CONFIGS / f"{name}.yaml").refiner.model == model
