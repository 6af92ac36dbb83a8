"""The names of a folder's files, looked up whole or by their ends."""

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
"""Of image files, in lower case. A file with another ending is found by its full name only."""
FEW = 64
"""Names that are looked at one by one."""
MAX_DEPTH = 4
"""Parts of a name that are indexed, from its end."""


class ImageNames:
    """Paths below a folder.

    Some 160 bytes for each, and 12 more for each number of parts that names are looked up by: in most folders 1, and
    none where annotations name their images as they are.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """`names`: paths with slashes, in any order."""
        self._names = sorted(names)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._by_end: dict[int, tuple[NDArray[np.int64], NDArray[np.int32]]] = {}
        self._holding: dict[str, bool] = {}
        self._lock = Lock()  # threads that need the same index wait for it, and do not make one each

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def number(self, name: str) -> int | None:
        """The number of a name, below `len`; None when there is no such name."""
        return self._numbers.get(name)

    def holds_images(self, folder: str) -> bool:
        """Whether an image lies below `folder`, at any depth."""
        with self._lock:
            if folder not in self._holding:
                first, behind = self._range(folder)
                self._holding[folder] = any(has_ending(self._names[number]) for number in range(first, behind))
            return self._holding[folder]

    def candidates(self, parts: Sequence[str], folder: str) -> list[str]:
        """The names below `folder` that may have the last part of `parts`: `same_image` says which of them do.

        Of more than `FEW`, those that share further parts, and of these `FEW` at most: enough to show that the name
        alone tells no image.
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
        """The numbers of the names below `folder`: they are sorted."""
        if not folder:
            return 0, len(self._names)
        return bisect_left(self._names, f"{folder}/"), bisect_left(self._names, f"{folder}0")  # 0 comes behind /

    def _with_end(self, end: Sequence[str], first: int, behind: int) -> NDArray[np.int32]:
        """The numbers from `first` to `behind` of names with this end, rising."""
        with self._lock:
            hashes, numbers = self._index(len(end))
        key = np.int64(hash(_end_key(end)))
        found = numbers[np.searchsorted(hashes, key) : np.searchsorted(hashes, key, side="right")]
        start, stop = np.searchsorted(found, (first, behind))
        return found[start:stop]

    def _index(self, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Hashes of the last `depth` parts in order, and the number of the name of each, which rises where hashes
        are equal."""
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
    """`text` in Unicode's composed form: macOS writes an é of a file name as e and an accent."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def has_ending(name: str) -> bool:
    """Whether `name` ends as an image file's does."""
    _, dot, ending = name.rpartition(".")
    return bool(dot) and ending.lower() in ENDINGS


def same_image(given: str, name: str) -> bool:
    """Whether a file called `name` may be meant by the last part of a path `given`: it is the same text in one of
    Unicode's forms, its ending is in capitals in one of the two, or `given` is without ending."""
    given, name = composed(given), composed(name)
    if given == name:
        return True
    if not has_ending(given):
        return has_ending(name) and given == name.rpartition(".")[0]
    (stem, _, ending), (own_stem, _, own_ending) = given.rpartition("."), name.rpartition(".")
    return stem == own_stem and ending.lower() == own_ending.lower()


def _end_key(parts: Sequence[str]) -> str:
    """Equal for ends of paths that may mean one image."""
    *folders, last = parts
    stem = last.rpartition(".")[0] if has_ending(last) else last
    return composed("/".join((*folders, stem)))
