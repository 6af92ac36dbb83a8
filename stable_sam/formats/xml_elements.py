"""Reads untrusted XML element by element, with bounded memory, and refuses entities and external references."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from stable_sam.errors import AnnotationError, one_line

MAX_ELEMENT_BYTES = 16 * 2**20
"""Largest child of the document's root. It is held as a whole, and as Python objects it is about 20 times as big."""
_DECLARATION = re.compile(rb"""(\s*<\?xml[^>]{0,100}?encoding\s*=\s*["'])([A-Za-z][\w.-]{0,40})""")
MAX_DEPTH = 100
"""Deepest nesting of elements; no supported format nests deeper than 10."""


def children(file: BinaryIO, name: str, root: str) -> Iterator[Element]:
    """Yield the children of the document's root; each child is released when the next one is asked for.

    `root` is the tag that the root must have, `name` the file's name for messages. Raises `AnnotationError` for another
    root, for invalid XML, and for XML that defines entities or refers to other files.
    """
    limited = _Limited(file, name)
    depth, top = 0, None
    with _explained(name):
        for event, element in iterparse(limited, events=("start", "end")):
            if event == "start":
                depth += 1
                if top is None:
                    top = element
                    if element.tag != root:
                        raise AnnotationError(f"{name}: expected XML of <{root}>, got <{element.tag:.80}>")
                if depth > MAX_DEPTH:
                    raise AnnotationError(f"{name}: expected at most {MAX_DEPTH} levels of XML, got more")
                continue
            depth -= 1
            if depth == 1 and top is not None:
                yield element
                top.clear()
                limited.taken()


def root_tag(file: BinaryIO, name: str) -> str:
    """Return the tag of the document's root; raises `AnnotationError` when the XML is invalid."""
    with _explained(name):
        for _, element in iterparse(_Limited(file, name), events=("start",)):
            return str(element.tag)
    raise AnnotationError(f"{name}: not valid XML: no element found")


def number(text: str | None) -> Any:
    """Return the finite number that a text means as a float; other text is returned as it is."""
    try:
        value = float(text or "")
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def whole_number(text: str | None) -> int | None:
    """Return the whole number that a text means, which may be written as 7.0; None for anything else."""
    value = number(text)
    return int(value) if isinstance(value, float) and value.is_integer() else None


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except DefusedXmlException as error:
        raise AnnotationError(f"{name}: expected XML that defines no entities, got {one_line(error)}") from None
    except (ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"{name}: not valid XML: {one_line(error)}") from None


class _Limited:
    """A file that raises `AnnotationError` when more than `MAX_ELEMENT_BYTES` are read before `taken` is called."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name, self._read = file, name, 0
        self._decoder: codecs.IncrementalDecoder | None = None
        self._started = False

    def read(self, length: int = -1) -> bytes:
        data = self._file.read(length)
        if not self._started:
            self._started = True
            data = self._declared(data)
        elif self._decoder is not None:
            data = self._decoder.decode(data, final=not data).encode()
        self._read += len(data)
        if self._read > MAX_ELEMENT_BYTES:
            raise AnnotationError(
                f"{self._name}: expected elements of at most {MAX_ELEMENT_BYTES} bytes, got a larger one"
            )
        return data

    def taken(self) -> None:
        self._read = 0

    def _declared(self, data: bytes) -> bytes:
        """Return the beginning of the file, in UTF-8 if it declares a multi-byte encoding other than a Unicode one.

        The parser does not know such encodings, for example GB2312 and Shift_JIS.
        """
        found = _DECLARATION.match(data)
        if found is None:
            return data
        encoding = codecs.lookup(found[2].decode("ascii")).name  # a LookupError is reported as invalid XML
        if encoding.startswith("utf") or len(bytes(range(128, 256)).decode(encoding, "replace")) == 128:
            return data
        # GB18030 contains GB2312 and GBK, and many files that declare one of these need it.
        self._decoder = codecs.getincrementaldecoder("gb18030" if encoding in ("gb2312", "gbk") else encoding)()
        return self._decoder.decode(found[1] + b"utf-8" + data[found.end(2) :]).encode()
