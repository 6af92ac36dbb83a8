"""How counts are worded in messages for people."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return `number` with its noun: "1 image", "2 images", "12,345 images".

    plural: the noun for every number but 1, where it is not `noun` with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def file_size(size: int) -> str:
    """Return a number of bytes in decimal units: "41 MB", "2.6 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 999.5e6 else f"{size / 1e6:.0f} MB"
