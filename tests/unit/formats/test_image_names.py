"""How annotations name their images, and what is no image of theirs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.formats.weak_source import Source, annotation, coco


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("a.jpg", "images/a.jpg"),
        ("images/a.jpg", "images/a.jpg"),
        ("./a.jpg", "images/a.jpg"),
        ("deep/c.jpg", "images/deep/c.jpg"),
        ("images\\deep\\c.jpg", "images/deep/c.jpg"),
    ],
)
def test_image_names_are_found_below_the_folder(source: Source, file_name: str, expected: str) -> None:
    [prompt] = source.read(coco(annotation(), file_name=file_name))
    assert (prompt.image_uri, prompt.error) == (source.uri(expected), None)


def test_image_names_that_begin_with_the_folder_also_work_from_above(source: Source) -> None:
    document = coco(annotation(), file_name="images/a.jpg")
    [prompt] = source.read(document, images=".")
    assert prompt.error is None
    assert prompt.image_uri.endswith("images/a.jpg")


@pytest.mark.parametrize(
    "file_name",
    [
        *(
            "missing.jpg",
            "a.jp",
            "other/c.jpg",
            "s3://bucket/secret.jpg",
            "\ud800.jpg",
            "",
            " ",
            ".",
            "./",
            None,
            7,
            ["a.jpg"],
        ),
        *("../secret.jpg", "deep/../../secret.jpg", "..\\secret.jpg", "/etc/passwd", "C:\\secret.jpg"),
    ],
)
def test_image_names_that_are_missing_or_lead_out_fail(source: Source, file_name: Any) -> None:
    [prompt] = source.read(coco(annotation(), file_name=file_name))
    assert prompt.image_uri == ""
    assert prompt.error is not None
    assert "image file" in prompt.error


def test_an_absolute_name_fails_even_if_it_exists(source: Source) -> None:
    [prompt] = source.read(coco(annotation(), file_name=source.uri("secret.jpg")))
    assert "leads out of it" in (prompt.error or "")


def test_an_image_id_that_stands_for_two_files_fails(source: Source) -> None:
    document = coco(annotation())
    document["images"].append({"id": 1, "file_name": "b.jpg"})
    [prompt] = source.read(document)
    assert "image id 1 stands for two files: 'a.jpg' and 'b.jpg'" in (prompt.error or "")
