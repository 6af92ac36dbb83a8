"""EXIF orientation: points and boxes turn as Pillow turns the pixels, there and back, and sizes say what is wrong."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stable_sam.images.decode import decode_for_input
from stable_sam.images.orientation import size_problem, turned_box, turned_hw, turned_xy
from stable_sam.images.size import stored_size_of
from stable_sam.storage import files as storage

BACK = {turn: {6: 8, 8: 6}.get(turn, turn) for turn in range(1, 9)}
"""The orientation that undoes each orientation."""
turns = st.integers(1, 8)
sides = st.integers(2, 60)


def file_of(pixels: np.ndarray, turn: int, format_: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, exif=exif)
    return buffer.getvalue()


@given(turn=turns, height=sides, width=sides, data=st.data(), format_=st.sampled_from(["PNG", "TIFF"]))
def test_a_box_turns_as_the_pixels_do(turn: int, height: int, width: int, data: st.DataObject, format_: str) -> None:
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    decoded = decode_for_input(file_of(pixels, turn, format_), name="x", max_pixels=10_000)
    rows, columns = np.nonzero(decoded.pixels[:, :, 0])
    left, top, right, bottom = turned_box((x0, y0, x1, y1), turn, (height, width))
    assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert decoded.original_hw == decoded.pixels.shape[:2] == turned_hw((height, width), turn)
    assert decoded.orientation == turn


@given(turn=turns, height=sides, width=sides, x=st.integers(0, 60), y=st.integers(0, 60))
def test_there_and_back(turn: int, height: int, width: int, x: int, y: int) -> None:
    upright = turned_xy((x, y), turn, (height, width))
    assert turned_xy(upright, BACK[turn], turned_hw((height, width), turn)) == (x, y)
    assert turned_hw(turned_hw((height, width), turn), BACK[turn]) == (height, width)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_the_header_says_size_and_orientation(turn: int, format_: str) -> None:
    uri = f"memory://orientation/{turn}.{format_}"
    storage.write_bytes(uri, file_of(np.zeros((20, 40, 3), np.uint8), turn, format_))
    assert stored_size_of(uri) == ((20, 40), turn)


def test_a_size_that_is_the_stored_one_is_recognised() -> None:
    assert size_problem((40, 20), (40, 20), 6) is None
    assert size_problem((9, 9), (40, 20), 6) == "expected the declared 9 x 9 pixels, the upright image has 20 x 40"
    assert str(size_problem((20, 40), (40, 20), 8)).endswith("as stored, before EXIF orientation 8 turns them")
    assert "EXIF" not in str(size_problem((20, 40), (40, 20), 3))
