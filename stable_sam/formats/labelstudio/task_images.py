"""Finds the image of a Label Studio task that a region is drawn on.

A task may show several images: one for each key of its `data`, or a list of pages under one key. A result says by
`to_name` which control of the labeling interface it belongs to, and by `item_index` which page. The export does not
hold the interface, so the control is matched with a key by its name; where that is not certain, nothing is assumed.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from stable_sam.formats.image_lookup import FoundImage, ImageLookup, paths_of
from stable_sam.formats.image_names import has_ending

IMAGE_KEYS = ("image", "img")
"""Keys of `data` whose text always names an image."""
WORD = re.compile(r"[a-z]+|[0-9]+")


class TaskImages:
    """The images of one task."""

    def __init__(self, data: Mapping[str, Any], lookup: ImageLookup) -> None:
        """`data` is that of the task, `lookup` finds the images that it names."""
        self._data, self._lookup = data, lookup
        found = {key: _references(value, certain=key in IMAGE_KEYS) for key, value in data.items()}
        self._references = {key: references for key, references in found.items() if references}
        self._found: dict[str, FoundImage] = {}

    def of(self, result: Mapping[str, Any]) -> FoundImage:
        """Return the image that a result is drawn on, or the reason why it is not known."""
        if not self._references:
            given = reprlib.repr(dict(self._data))
            return _unknown(f"expected a task with an image, got data {given:.80}")
        key = self._key(result.get("to_name"))
        if key is None:
            return _unknown(
                f"expected one image of the task by to_name, got {result.get('to_name')!r:.80} where the task has "
                f"{', '.join(self._references):.200}: name the image's control like its key in the data"
            )
        pages = self._references[key]
        page = 0 if len(pages) == 1 else _page(result)
        if page is None or not 0 <= page < len(pages):
            given = result.get("item_index", result.get("to_name"))
            return _unknown(
                f"expected item_index from 0 to {len(pages) - 1} for the pages of {key:.80}, got {given!r:.80}"
            )
        reference = pages[page]
        if reference not in self._found:
            self._found[reference] = self._lookup.find(
                reference, missing=f"image {reference!r:.200} is not below {self._lookup.folder.uri}"
            )
        return self._found[reference]

    def _key(self, to_name: Any) -> str | None:
        """Return the key of `data` that a control shows, None when it may be one of several."""
        if len(self._references) == 1:
            return next(iter(self._references))
        if not isinstance(to_name, str):
            return None
        if to_name in self._references:
            return to_name
        said, words = _words(to_name), {key: _words(key) for key in self._references}
        common = frozenset.intersection(*words.values())
        for fits in (
            [key for key, own in words.items() if own == said],
            [key for key, own in words.items() if (own - common) & said],
        ):
            if len(fits) == 1:
                return fits[0]
        return None


def _references(value: Any, *, certain: bool) -> list[str]:
    """Return the images that a value of `data` names: one, or the pages of a list."""
    if isinstance(value, str):
        return [value] if certain or any(has_ending(path) for path in paths_of(value)) else []
    if isinstance(value, Mapping):
        inner = [reference for part in value.values() for reference in _references(part, certain=False)]
        return inner if len(inner) == 1 else []
    if isinstance(value, list):
        pages = [_references(part, certain=certain) for part in value]
        return [page for (page,) in pages] if all(len(page) == 1 for page in pages) else []
    return []


def _page(result: Mapping[str, Any]) -> int | None:
    """Return the page that a result names, or else the number in the name of a repeated control (`page_3`)."""
    given = result.get("item_index")
    if given is not None:
        return given if type(given) is int else None
    number = re.search(r"[0-9]{1,9}$", str(result.get("to_name")))
    return int(number[0]) if number else None


def _words(name: str) -> frozenset[str]:
    return frozenset("image" if word in ("img", "picture") else word for word in WORD.findall(name.lower()))


def _unknown(problem: str) -> FoundImage:
    return FoundImage(image_id="", problem=problem)
