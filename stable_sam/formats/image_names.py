"""Holds the names of a folder's files and finds them by the whole name or by its end."""

from __future__ import annotations

import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

ENDINGS = frozenset(
    {"jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "avif", "jp2", "pgm", "ppm", "tga"}
)
"""Endings of image files, in lower case. A file with another ending is found only by its full name."""
FEW = 64
"""Largest number of candidates that are compared one by one."""
MAX_DEPTH = 4
"""Largest number of parts of a name, from its end, that are indexed."""


class ImageNames:
    """The paths below a folder.

    A path takes about 160 bytes of memory, and 12 more for each index by a number of parts. Most folders need one
    index, and folders whose images are named by their full paths need none.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Hold `names`, which are paths with forward slashes, in any order."""
        self._names = sorted(names)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._by_end: dict[int, tuple[NDArray[np.int64], NDArray[np.int32]]] = {}
        self._holding: dict[str, bool] = {}
        self._lock = Lock()  # so that threads that need the same index make it once

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def number(self, name: str) -> int | None:
        """Return the number of a name, from 0 and below `len`; None when there is no such name."""
        return self._numbers.get(name)

    def holds_images(self, folder: str) -> bool:
        """Whether an image lies below `folder`, at any depth."""
        with self._lock:
            if folder not in self._holding:
                first, behind = self._range(folder)
                self._holding[folder] = any(has_ending(self._names[number]) for number in range(first, behind))
            return self._holding[folder]

    def candidates(self, parts: Sequence[str], folder: str) -> list[str]:
        """Return the names below `folder` that may end with the last of `parts`; `same_image` says which of them do.

        When there are more than `FEW`, only those that share further parts are returned, and of these at most `FEW`,
        which is enough to show that the name does not identify an image.
        """
        first, behind = self._range(folder)
        found = deeper = np.empty(0, np.int32)
        for depth in range(1, min(len(parts), MAX_DEPTH) + 1):
            deeper = self._with_end(parts[-depth:], first, behind)
            if depth > 1 and not len(deeper):
                break
            found = deeper
            if len(found) <= FEW:
                break
        return [self._names[number] for number in found[:FEW].tolist()]

    def _range(self, folder: str) -> tuple[int, int]:
        """Return the range of the numbers of the names below `folder`, which is one range because they are sorted."""
        if not folder:
            return 0, len(self._names)
        return bisect_left(self._names, f"{folder}/"), bisect_left(self._names, f"{folder}0")  # 0 follows / in ASCII

    def _with_end(self, end: Sequence[str], first: int, behind: int) -> NDArray[np.int32]:
        """Return the numbers from `first` and below `behind` of the names with this end, in ascending order."""
        with self._lock:
            hashes, numbers = self._index(len(end))
        key = np.int64(hash(_end_key(end)))
        found = numbers[np.searchsorted(hashes, key) : np.searchsorted(hashes, key, side="right")]
        start, stop = np.searchsorted(found, (first, behind))
        return found[start:stop]

    def _index(self, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the sorted hashes of the last `depth` parts of the names, and the number of the name of each.

        Numbers of equal hashes are in ascending order.
        """
        if depth not in self._by_end:
            hashes, numbers = array("q"), array("i")
            for number, name in enumerate(self._names):
                parts = name.rsplit("/", depth)[-depth:]
                if len(parts) == depth:
                    hashes.append(hash(_end_key(parts)))
                    numbers.append(number)
            order = np.argsort(np.asarray(hashes, np.int64), kind="stable")
            self._by_end[depth] = np.asarray(hashes, np.int64)[order], np.asarray(numbers, np.int32)[order]
        return self._by_end[depth]


def composed(text: str) -> str:
    """Return `text` in Unicode's composed form, because macOS writes an é in a file name as e and an accent."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def has_ending(name: str) -> bool:
    """Whether `name` has the ending of an image file."""
    _, dot, ending = name.rpartition(".")
    return bool(dot) and ending.lower() in ENDINGS


def same_image(given: str, name: str) -> bool:
    """Whether the last part `given` of a path may mean a file called `name`.

    The two may differ in their Unicode form and in the case of their endings, and `given` may have no ending.
    """
    given, name = composed(given), composed(name)
    if given == name:
        return True
    if not has_ending(given):
        return has_ending(name) and given == name.rpartition(".")[0]
    (stem, _, ending), (own_stem, _, own_ending) = given.rpartition("."), name.rpartition(".")
    return stem == own_stem and ending.lower() == own_ending.lower()


def _end_key(parts: Sequence[str]) -> str:
    """Return a key that is equal for ends of paths that may mean one image."""
    *folders, last = parts
    stem = last.rpartition(".")[0] if has_ending(last) else last
    return composed("/".join((*folders, stem)))
