"""The floors of the import rules name every module and package of the library, and so does docs/architecture.md."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
[LAYERS] = [contract["layers"] for contract in CONTRACTS if contract["type"] == "layers"]
ROOMS = sorted(
    path.stem for path in (ROOT / "stable_sam").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
)


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "__init__"])
def test_every_room_stands_on_one_floor_and_in_the_picture_of_the_house(room: str) -> None:
    floors = [floor for floor in LAYERS if f"stable_sam.{room}" in floor.split(" | ")]
    house = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]

    assert len(floors) == 1
    assert f"{room}/" in house or f"{room}.py" in house
