"""Counts in messages."""

from __future__ import annotations

import pytest

from stable_sam.wording import counted


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (12345, "12,345 images")]
)
def test_a_noun_follows_its_number(number: int, words: str) -> None:
    assert counted(number, "image") == words


def test_a_plural_may_be_given() -> None:
    assert [counted(number, "mask is", "masks are") for number in (1, 2)] == ["1 mask is", "2 masks are"]
