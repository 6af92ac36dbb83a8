"""Every format is registered once, and the command line knows the same names."""

from __future__ import annotations

from typing import get_args

import pytest

from stable_sam.formats.registry import READERS, REVIEW_READERS, WRITERS
from stable_sam.records import AnnotationFormat


def test_the_command_line_offers_every_format_that_can_be_read() -> None:
    assert set(get_args(AnnotationFormat)) == {"auto", *READERS}


@pytest.mark.parametrize("name", READERS)
def test_a_format_is_read_as_a_stream_or_as_small_files(name: str) -> None:
    reader = READERS[name]
    assert (reader.read is None) != (reader.read_small is None)


def test_no_two_formats_are_recognised_by_the_same_mark() -> None:
    roots = [reader.xml_root for reader in READERS.values() if reader.xml_root]
    keys = [key for reader in READERS.values() for key in reader.json_keys]
    assert len(set(roots)) == len(roots)
    assert len(set(keys)) == len(keys)


def test_what_comes_back_from_a_review_was_exported_in_that_format() -> None:
    assert set(REVIEW_READERS) <= set(WRITERS)
