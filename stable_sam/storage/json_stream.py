"""Reads JSON documents of any length in pieces, with one list element at a time in memory.

Each element is parsed by Python's own scanner, so it equals what `json.loads` returns. Other streaming parsers refuse
NaN, 1e400 and very large whole numbers. Here such an element must become a failed row without ending the whole file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from stable_sam.errors import AnnotationError, one_line

MAX_ELEMENT_CHARS = 16 * 2**20
"""Most characters of one value, which is held whole. Its Python objects take about 30 times as much memory."""
CHUNK_BYTES = 2**20
LONGEST_WORD = 10
"""A little longer than `-Infinity`. An error this close to the end of the text may only mean that more must be read."""
_DECODE = json.JSONDecoder().raw_decode
_SPACE: Callable[[str, int], re.Match[str]] = re.compile(r"[ \t\n\r]*").match  # type: ignore[assignment]  # matches always


class JsonStream:
    """A position in a JSON document, which moves forward as values are read.

    Methods raise `AnnotationError` with line and column where the document is not valid JSON.
    """

    def __init__(self, file: BinaryIO, name: str, offset: int = 0) -> None:
        """Read `file` from `offset` in bytes on; `name` is the document's name in messages."""
        self._file, self._name = file, name
        file.seek(offset)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig" if offset == 0 else "utf-8")()
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column = 1, 1

    @property
    def offset(self) -> int:
        """Offset of the position in the file in bytes, at which another stream may start."""
        waiting = self._text[self._at :].encode() + self._decoder.getstate()[0]
        return self._file.tell() - len(waiting)

    def peek(self) -> str:
        """Return the next character that is no white space, without taking it; empty at the end of the file."""
        while True:
            self._at = _SPACE(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that begins here. Take or skip the value of each key before the next one."""
        self._take("{", "Expecting property name enclosed in double quotes")
        if self.peek() == "}":
            self._at += 1
            return
        yield from self._members()

    def more_members(self) -> Iterator[str]:
        """Yield the remaining keys of an object when the position is behind one of its values."""
        if not self._ends("}"):
            yield from self._members()

    def _members(self) -> Iterator[str]:
        while True:
            key = self.value() if self.peek() == '"' else None
            if not isinstance(key, str):
                raise self._error("Expecting property name enclosed in double quotes")
            self._take(":", "Expecting ':' delimiter")
            yield key
            if self._ends("}"):
                return

    def elements(self) -> Iterator[Any]:
        """Yield the elements of the list that begins here."""
        self._take("[", "Expecting value")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._ends("]"):
                return

    def value(self) -> Any:
        """Return the whole value that begins here."""
        self.peek()
        while True:
            try:
                value, end = _DECODE(self._text, self._at)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - LONGEST_WORD
                if self._ended or not unfinished:
                    self._at = error.pos
                    raise self._error(error.msg) from None
            except (ValueError, RecursionError) as error:
                raise self._error(one_line(error)) from None
            else:
                # A number at the end of the text may have more digits in the file.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_ELEMENT_CHARS:
                raise self._error(f"one value has more than {MAX_ELEMENT_CHARS} characters")
            self._fill()

    def skip(self) -> None:
        """Skip the value that begins here; a list may have any length."""
        if self.peek() == "[":
            for _ in self.elements():
                pass
        else:
            self.value()

    def end(self) -> None:
        """Raise `AnnotationError` unless the document ends here."""
        if self.peek():
            raise self._error("Extra data")

    def _take(self, character: str, problem: str) -> None:
        if self.peek() != character:
            raise self._error(problem)
        self._at += 1

    def _ends(self, last: str) -> bool:
        found = self.peek()
        if found not in (",", last) or not found:
            raise self._error("Expecting ',' delimiter")
        self._at += 1
        return found == last

    def _fill(self) -> bool:
        """Read at least as much text again as is waiting, and drop what was taken; False at the end of the file."""
        if self._ended:
            return False
        taken, rest = self._text[: self._at], self._text[self._at :]
        lines = taken.count("\n")
        self._line += lines
        self._column = len(taken) - taken.rfind("\n") if lines else self._column + len(taken)
        self._text, self._at = rest, 0
        data = self._file.read(max(CHUNK_BYTES, len(rest)))
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            place = self._file.tell() - len(error.object) + error.start
            raise AnnotationError(f"{self._name}: byte {place}: {one_line(error)}") from None
        return True

    def _error(self, problem: str) -> AnnotationError:
        before = self._text[: self._at]
        lines = before.count("\n")
        column = len(before) - before.rfind("\n") if lines else self._column + len(before)
        return AnnotationError(f"{self._name}: not valid JSON: {problem} at line {self._line + lines}, column {column}")
