"""The one table of scores, against the columns that rows have and the words that people read."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from stable_sam.records import RefinedMask
from stable_sam.scores import FROM_MODEL, SCORES, Score
from stable_sam.table.schema import MASKS_SCHEMA

README = Path(__file__, "../../../README.md").resolve().read_text(encoding="utf-8")


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.column)
def test_every_score_is_a_column_of_the_table(score: Score) -> None:
    assert score.column in {field.name for field in fields(RefinedMask)}
    assert MASKS_SCHEMA.field(score.column).type == "double"


def test_every_score_column_is_in_the_list() -> None:
    """All columns of the masks between the mask and the route are scores, but for texts and places."""
    names = MASKS_SCHEMA.names[MASKS_SCHEMA.get_field_index("area") + 1 : MASKS_SCHEMA.get_field_index("route")]
    assert {name for name in names if MASKS_SCHEMA.field(name).type == "double"} == set(FROM_MODEL)


@pytest.mark.parametrize("column", FROM_MODEL)
def test_the_readme_has_words_for_every_score_of_a_model(column: str) -> None:
    assert f"| {column} |" in README
