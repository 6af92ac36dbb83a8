"""Settings of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from stable_sam.errors import ConfigError
from stable_sam.training.training_config import BaseTraining, PluginTraining
from tests.unit.training.ellipses import settings_of


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (BaseTraining, {"learning_rat": 1}, "learning_rat: "),
        (BaseTraining, {"stages": []}, "stages: "),
        (BaseTraining, {"stages": [{"size": 100, "steps": 1}]}, "stages.0.size: .*multiple of 32, got 100"),
        (BaseTraining, {"ema": 1.0}, "ema: "),
        (BaseTraining, {"set_weights": {"one": -1}}, "set_weights.one: "),
        (BaseTraining, {"noise_scales": [0.1]}, "noise_scales: "),
        (PluginTraining, {"noise_scales": [0.2, 1.5]}, "noise_scales.1: "),
        (PluginTraining, {"point_counts": [0]}, "point_counts.0: "),
        (PluginTraining, {"stages": [{"size": 64, "steps": 1}]}, "stages: "),
        (PluginTraining, {"epochs": 0}, "epochs: "),
        (PluginTraining, {"steps": 0}, "steps: "),
    ],
)
def test_settings_are_checked(kind, changes, message):
    with pytest.raises(ConfigError, match=message):
        settings_of(kind, **changes)


@pytest.mark.parametrize(("name", "kind"), [("train_base", BaseTraining), ("train_plugin", PluginTraining)])
def test_the_files_in_configs_are_settings(name, kind):
    assert kind.from_yaml(Path(__file__).parents[3] / "configs" / f"{name}.yaml").set_weights["hand_tools"] == 4


def test_a_plugin_trains_for_one_epoch_unless_told_otherwise(tmp_path):
    assert (PluginTraining.from_file(None).epochs, PluginTraining.from_file(None).steps) == (1, None)
    file = tmp_path / "settings.yaml"
    file.write_text("{steps: 30, objects: 3}")
    chosen = PluginTraining.from_file(file, steps=7)
    assert (chosen.steps, chosen.objects) == (7, 3)
    with pytest.raises(ConfigError, match="--steps: steps: .*got 0"):
        PluginTraining.from_file(None, steps=0)
