"""Says what a file is that was not expected, by its first bytes."""

from __future__ import annotations

LFS_POINTER = b"version https://git-lfs"
"""The first bytes of the small text that Git leaves in the place of a file of Git LFS that is not fetched yet."""


def beginning(data: bytes) -> str:
    """Return what a message says that a file is which begins with `data`, at least its first 30 bytes."""
    if data.startswith(LFS_POINTER):
        return "a pointer of Git LFS in its place: fetch the file with git lfs pull"
    return f"bytes that begin with {data[:8]!r}"
