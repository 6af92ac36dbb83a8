"""How counts are worded in messages for people."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return `number` with its noun: "1 image", "2 images", "12,345 images".

    plural: the noun for every number but 1, where it is not `noun` with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
