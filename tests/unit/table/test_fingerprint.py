"""Fingerprints are stored in the tables of users, so they must stay what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import duckdb
import pytest

from stable_sam.records import Prompt
from stable_sam.table.fingerprint import PROMPT_HASH
from stable_sam.table.schema import PROMPTS_SCHEMA, prompt_row, rows_to_table

PROMPT = Prompt(
    prompt_id="7",
    image_id="1",
    image_uri="s3://bucket/ü 1.jpg",
    image_size=(480, 640),
    box_xyxy=(0.1, 2.0, 1e16, 4.5),
    points_xy=((5.0, 6.25),),
    point_labels=(1,),
    annotation_id="7",
    category_id=3,
    category="thing",
    score=0.30000000000000004,
    attributes='{"a": 1}',
)


def prompt_hash(prompt: Prompt) -> int:
    table = rows_to_table([prompt_row(prompt)], PROMPTS_SCHEMA)
    with duckdb.connect() as connection:
        connection.register("prompts", table)
        ((value,),) = connection.execute(f"SELECT {PROMPT_HASH} FROM prompts").fetchall()
    return int(value)


def test_a_fingerprint_stays_what_it_is() -> None:
    assert f"{prompt_hash(PROMPT):016x}" == "9be07c4d1712f597"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_id": "8"}, {"image_id": "2"}, {"image_uri": "b"}, {"image_size": None}, {"image_size": (640, 480)},
        {"box_xyxy": None}, {"box_xyxy": (0.1, 2.0, 1e16, 4.500001)}, {"points_xy": ()}, {"point_labels": (0,)},
        {"annotation_id": None}, {"category_id": None}, {"category": ""}, {"category": None}, {"iscrowd": True},
        {"score": 0.3}, {"attributes": None}, {"error": "bad"},
        # Texts that run over into their neighbour.
        {"annotation_id": "7|3", "category_id": None}, {"category": "-"}, {"attributes": "-"},
    ],
)  # fmt: skip
def test_every_field_counts(change: dict[str, Any]) -> None:
    assert prompt_hash(replace(PROMPT, **change)) != prompt_hash(PROMPT)


def test_what_is_no_content_does_not_count() -> None:
    assert prompt_hash(replace(PROMPT, fingerprint="0" * 32)) == prompt_hash(PROMPT)


def test_of_a_refused_prompt_only_the_cause_counts_and_no_place() -> None:
    refused = replace(PROMPT, error="/a/weak.json: line 7: the box is empty", cause="the box is empty")
    elsewhere = replace(refused, error="/b/weak.json: line 9: the box is empty", image_uri="/b/images/ü 1.jpg")
    assert prompt_hash(refused) == prompt_hash(elsewhere)
    assert prompt_hash(refused) != prompt_hash(replace(refused, cause="the box is inverted"))
    assert prompt_hash(refused) != prompt_hash(replace(refused, category="other"))
