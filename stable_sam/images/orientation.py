"""EXIF orientation: how the pixels that a file stores are turned to the upright image, and boxes and points with them.

    orientation   1 none   2 mirrored   3 by 180°   4 mirrored, by 180°
                  5 transposed   6 by 90° clockwise   7 transposed, by 180°   8 by 90° counterclockwise

Viewers and this software show the upright image. Some annotation tools and image libraries ignore EXIF: sizes and boxes
in their files are those of the pixels as stored.
"""

from __future__ import annotations

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from stable_sam.records import BoxXYXY

SIDEWAYS = 5
"""EXIF orientations from this one on swap width and height."""


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 when EXIF is missing, unreadable or has another value."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return next((known for known in range(2, 9) if value == known), 1)
    except Exception:
        # The pixels are good although EXIF is unreadable, and every viewer shows them as they are stored.
        return 1


def stored_size(image: Image.Image) -> tuple[tuple[int, int], int]:
    """Return (height, width) of the pixels as the file stores them, and the EXIF orientation that turns them upright.

    image: an image that Pillow has opened and not loaded yet.
    """
    turn, size_hw = orientation(image), (image.height, image.width)
    # Pillow turns a TIFF itself when it loads it, and before that its size is the upright one already.
    return (turned_hw(size_hw, turn) if isinstance(image, TiffImageFile) else size_hw), turn


def turned_hw(size_hw: tuple[int, int], turn: int) -> tuple[int, int]:
    """Return (height, width) of the upright image from that of the stored pixels with orientation `turn`, or back."""
    height, width = size_hw
    return (width, height) if turn >= SIDEWAYS else (height, width)


def turned_xy(point_xy: tuple[float, float], turn: int, stored_hw: tuple[int, int]) -> tuple[float, float]:
    """Return a point (x, y) of the stored pixels in pixels of the upright image.

    turn: the EXIF orientation. stored_hw: (height, width) of the stored pixels.
    """
    x, y = point_xy
    height, width = stored_hw
    if turn in (2, 3, 7, 8):
        x = width - x
    if turn in (3, 4, 6, 7):
        y = height - y
    return (y, x) if turn >= SIDEWAYS else (x, y)


def turned_box(box_xyxy: BoxXYXY, turn: int, stored_hw: tuple[int, int]) -> BoxXYXY:
    """Return a box of the stored pixels in pixels of the upright image, as `turned_xy` turns its corners."""
    x0, y0, x1, y1 = box_xyxy
    (left, top), (right, bottom) = turned_xy((x0, y0), turn, stored_hw), turned_xy((x1, y1), turn, stored_hw)
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def size_problem(declared_hw: tuple[int, int], upright_hw: tuple[int, int], turn: int) -> str | None:
    """Say how the size that annotations state differs from the image's own; None when it does not.

    Both are (height, width) in pixels. turn: the image's EXIF orientation, which is named when the stated size is that
    of the stored pixels.
    """
    if declared_hw == upright_hw:
        return None
    problem = (
        f"expected the declared {declared_hw[1]} x {declared_hw[0]} pixels, "
        f"the upright image has {upright_hw[1]} x {upright_hw[0]}"
    )
    if declared_hw != turned_hw(upright_hw, turn):
        return problem
    return f"{problem}: the declared size is that of the pixels as stored, before EXIF orientation {turn} turns them"
