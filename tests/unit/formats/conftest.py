"""The dataset that the tests of annotation formats share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.formats.dataset import Dataset


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)
