"""Weights files execute no code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from stable_sam.config import RefinerConfig
from stable_sam.errors import WeightsError
from stable_sam.modeling.load import load_model


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("which", ["checkpoint_uri", "hq_uri"])
@pytest.mark.parametrize("archive", [True, False])
def test_weights_execute_no_code(tmp_path: Path, which: str, archive: bool) -> None:
    bad, executed = tmp_path / "bad.pth", tmp_path / "executed"
    if archive:
        torch.save({"weight": torch.zeros(1), "more": Payload(executed)}, bad)
    else:
        bad.write_bytes(pickle.dumps(Payload(executed), protocol=2))
    model = {"model": "vit_b"} if which == "checkpoint_uri" else {"model": "tiny"}
    with pytest.raises(WeightsError, match="bad.pth: expected"):
        load_model(RefinerConfig.from_dict({**model, which: str(bad), "device": "cpu"}))
    assert not executed.exists()


def test_a_pickle_is_no_safetensors_file(tmp_path: Path) -> None:
    bad, executed = tmp_path / "plugin.safetensors", tmp_path / "executed"
    bad.write_bytes(pickle.dumps(Payload(executed), protocol=2))
    with pytest.raises(WeightsError, match="expected a safetensors file"):
        load_model(RefinerConfig(model="nano", plugin_uri=str(bad), device="cpu"))
    assert not executed.exists()
