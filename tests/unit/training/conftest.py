"""Training data and a base trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stable_sam.training import train_base as base
from stable_sam.training.dataset import Batch
from stable_sam.training.train_base import train_base
from stable_sam.training.training_config import BaseTraining
from tests.unit.training.ellipses import settings_of, watch, write_set


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)  # training switches it on, and other tests look at denormal numbers


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Two sets; file names of the one begin at its `images/`, of the other at the JSON."""
    folder = tmp_path_factory.mktemp("data")
    write_set(folder / "one", 0, "images", "{}")
    write_set(folder / "two", 1, "images", "images/{}")
    return folder


@pytest.fixture(scope="session")
def whole_run(data, tmp_path_factory) -> tuple[Path, list[Batch]]:
    """A base trained in one go, and the batches that it saw."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch, base, "base_loss")
        return train_base(data, tmp_path_factory.mktemp("base"), settings_of(BaseTraining)), seen
