"""Writes JSON documents of any length whose lists grow element by element, so that no list is held in memory."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from stable_sam.storage.files import write_stream

Append = Callable[[Any], None]


@contextmanager
def json_lists(uri: str, head: Mapping[str, Any] | None, names: tuple[str, ...]) -> Iterator[tuple[Append, ...]]:
    """Write a JSON object with the fields of `head` and a list under each of `names`. Yields, for each list, a function
    that appends an element.

    head: None writes a document that is a single list.
    The first list is written to the document at once; the others are kept in temporary files until the end.
    """
    with write_stream(uri) as file, ExitStack() as opened:
        waiting = [opened.enter_context(tempfile.TemporaryFile()) for _ in names[1:]]
        beginnings = [f'"{name}": [' if head is not None else "[" for name in names]
        fields = (
            "" if head is None else "{" + "".join(f"{_dump(key)}: {_dump(value)},\n" for key, value in head.items())
        )
        file.write((fields + beginnings[0]).encode())

        def appender(part: Any) -> Append:
            separator = "\n"

            def append(element: Any) -> None:
                nonlocal separator
                part.write(f"{separator}{_dump(element)}".encode())
                separator = ",\n"

            return append

        yield tuple(appender(part) for part in (file, *waiting))
        for beginning, part in zip(beginnings[1:], waiting, strict=True):
            file.write(f"],\n{beginning}".encode())
            part.seek(0)
            shutil.copyfileobj(part, file)
        file.write(b"]}\n" if head is not None else b"]\n")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
