"""The loop: its rate, log, checkpoints, and resume."""

from __future__ import annotations

import csv

import pytest

from stable_sam.errors import StorageError, WeightsError
from stable_sam.training import train_plugin as plugin
from stable_sam.training.loop import mean_figures, rate_factor, write_csv
from stable_sam.training.train_plugin import train_plugin
from stable_sam.training.training_config import BaseTraining, PluginTraining
from tests.unit.training.ellipses import Killed, settings_of, tiny, watch


def test_rate_rises_stays_and_falls_to_nothing():
    settings = settings_of(BaseTraining, warmup_steps=10, cooldown=0.4)
    rates = [rate_factor(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[9:61] == pytest.approx([1.0] * 52)
    assert rates[60:] == pytest.approx([1 - n / 40 for n in range(40)])
    assert rate_factor(100, 100, settings) == 0
    assert rate_factor(0, 100, settings_of(BaseTraining, warmup_steps=0)) == 1
    assert rate_factor(3, 16, settings) == 1  # a short run warms up in a quarter of its steps


def test_figures_are_averaged_where_they_are():
    rows = [{"loss": 1.0}, {"loss": 2.0, "iou": 0.25}, {"loss": 6.0, "iou": 0.75}]
    assert mean_figures(rows) == {"loss": 3.0, "iou": 0.5}


def test_log_has_a_column_for_every_figure(tmp_path):
    write_csv(tmp_path / "log.csv", [{"step": 20, "loss": 1.5, "iou": 0.5}, {"step": 40, "loss": 1.25, "new": 3}])
    assert read_log(tmp_path) == [
        {"step": "20", "loss": "1.5", "iou": "0.5", "new": ""},
        {"step": "40", "loss": "1.25", "iou": "", "new": "3"},
    ]


def read_log(folder):
    with (folder / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("kill_at", [1, 3, 6])
def test_a_resumed_run_ends_as_one_that_was_not_killed(data, tmp_path, monkeypatch, kill_at):
    """Bit for bit: the weights with all that their file says, and the log but for its times."""
    monkeypatch.setattr("stable_sam.training.loop.REPORT_STEPS", 3)
    settings = settings_of(PluginTraining, steps=7)
    whole = train_plugin(tiny(), data, tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        watch(patch, plugin, "plugin_loss", kill_at=kill_at)
        with pytest.raises(Killed):
            train_plugin(tiny(), data, tmp_path / "parts", settings)
    seen = watch(monkeypatch, plugin, "plugin_loss")
    resumed = train_plugin(tiny(), data, tmp_path / "parts", settings)
    assert len(seen) == 7 - kill_at // 2 * 2  # a checkpoint every two steps
    assert resumed.read_bytes() == whole.read_bytes()
    logs = [[row | {"seconds": ""} for row in read_log(tmp_path / name)] for name in ("parts", "whole")]
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[0]] == ["3", "6", "7"]


def test_a_finished_run_only_exports_again_the_same_bytes(data, tmp_path, monkeypatch):
    settings = settings_of(PluginTraining)
    before = train_plugin(tiny(), data, tmp_path, settings).read_bytes()
    seen = watch(monkeypatch, plugin, "plugin_loss")
    for _ in range(2):
        assert train_plugin(tiny(), data, tmp_path, settings).read_bytes() == before
    assert seen == []


def test_other_files_where_training_files_should_be_are_refused(data, tmp_path):
    def train(**changes):
        return train_plugin(tiny(), data, tmp_path / "out", settings_of(PluginTraining, **changes))

    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="out: expected a folder to write to"):
        train()
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"PK not a checkpoint")
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: not a checkpoint of this training"):
        train()
    (tmp_path / "out" / "checkpoint.pt").unlink()
    train()
    with pytest.raises(
        WeightsError, match=r"checkpoint\.pt: not a checkpoint of this training.*architecture"
    ) as raised:
        train(plugin={"hidden": 4})
    assert len(str(raised.value).splitlines()) == 1
