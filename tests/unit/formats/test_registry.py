"""Every format is registered once, and the command line knows the same names."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import get_args, get_type_hints

import pytest

from flows.commands.export import export
from flows.commands.import_review import import_review
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


@pytest.mark.parametrize(("command", "names"), [(export, WRITERS), (import_review, REVIEW_READERS)])
def test_the_help_of_a_command_lists_its_formats(command: Callable[..., None], names: Mapping[str, object]) -> None:
    helps = [option.help for hint in get_type_hints(command, include_extras=True).values()
             for option in getattr(hint, "__metadata__", ()) if option.help]  # fmt: skip
    [listed] = [text for text in helps if text.startswith(("Format to write: ", "Format of the files: "))]
    words = re.sub(r" \(.*?\)", "", listed).partition(": ")[2].rstrip(".")
    assert set(words.replace(" or ", ", ").split(", ")) == set(names)


def test_planning_does_not_wait_for_what_only_exports_and_reviews_need() -> None:
    code = "import sys, stable_sam.formats.read; sys.exit('scipy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
