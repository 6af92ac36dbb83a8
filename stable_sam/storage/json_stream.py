"""JSON documents of any length, read in pieces: one list element at a time is in memory.

Each element goes through Python's own scanner, so it means what `json.loads` makes of it: this module exists because
the parsers made for streams refuse NaN, 1e400 and whole numbers of any size, which must each become a failed row here
and not the end of the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from stable_sam.errors import AnnotationError, one_line

MAX_ELEMENT_CHARS = 16 * 2**20
"""Of one value that is held as a whole. As Python objects it is some 30 times as big."""
CHUNK_BYTES = 2**20
LONGEST_WORD = 10
"""A little more than `-Infinity`: so near the end of the text an error may mean that the rest has not been read."""
_DECODE = json.JSONDecoder().raw_decode
_SPACE: Callable[[str, int], re.Match[str]] = re.compile(r"[ \t\n\r]*").match  # type: ignore[assignment]  # matches always


class JsonStream:
    """A position in a JSON document; what is no JSON raises `AnnotationError` with line and column."""

    def __init__(self, file: BinaryIO, name: str, offset: int = 0) -> None:
        """`file` is read from `offset` (bytes) on; `name` is the document's, for messages."""
        self._file, self._name = file, name
        file.seek(offset)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig" if offset == 0 else "utf-8")()
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column = 1, 1

    @property
    def offset(self) -> int:
        """Where the position is in the file, in bytes: another stream may start there."""
        waiting = self._text[self._at :].encode() + self._decoder.getstate()[0]
        return self._file.tell() - len(waiting)

    def peek(self) -> str:
        """The next character that is no white space, empty at the end of the file."""
        while True:
            self._at = _SPACE(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here; the value behind each must be taken or skipped before the next."""
        self._take("{", "Expecting property name enclosed in double quotes")
        if self.peek() == "}":
            self._at += 1
            return
        yield from self._members()

    def more_members(self) -> Iterator[str]:
        """The further keys of an object when the position is behind one of its values."""
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
        """The elements of the list that begins here."""
        self._take("[", "Expecting value")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._ends("]"):
                return

    def value(self) -> Any:
        """The value that begins here, as a whole."""
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
                # At the end of the text a number may go on.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_ELEMENT_CHARS:
                raise self._error(f"one value of more than {MAX_ELEMENT_CHARS} characters")
            self._fill()

    def skip(self) -> None:
        """Pass by the value that begins here; a list may be of any length."""
        if self.peek() == "[":
            for _ in self.elements():
                pass
        else:
            self.value()

    def end(self) -> None:
        """Raise `AnnotationError` when something follows."""
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
        """Read on, at least as much as is waiting, and forget what has been taken; False at the end of the file."""
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
            raise self._error(one_line(error)) from None
        return True

    def _error(self, problem: str) -> AnnotationError:
        before = self._text[: self._at]
        lines = before.count("\n")
        column = len(before) - before.rfind("\n") if lines else self._column + len(before)
        return AnnotationError(f"{self._name}: not valid JSON: {problem} at line {self._line + lines}, column {column}")
