"""What messages are made of."""

from __future__ import annotations

import pytest

from stable_sam.errors import counted


@pytest.mark.parametrize(("count", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_a_count_has_its_noun_in_the_right_number(count: int, text: str) -> None:
    assert counted(count, "image") == text
