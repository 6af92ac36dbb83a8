"""The folders that the tests of annotation formats share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.formats.dataset import Dataset
from tests.unit.formats.weak_source import Source


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    (tmp_path / "images" / "deep" / "b.jpg").write_bytes(b"")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "private.jpg").write_bytes(b"")
    return tmp_path


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)
