"""Make the pictures of the page: each image once and reduced, and a crop of its own for a small object."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stable_sam.errors import ImageError, StorageError
from stable_sam.images.decode import decode_image
from stable_sam.storage.files import read_bytes

PIXELS_MAX = 300_000_000
"""Most pixels of all pictures of whole images together, each counted as a square: about 30 MB of the page."""
SIDE_MIN, SIDE_MAX = 384, 1024
"""Bounds of the longest side of the picture of an image, in pixels; the more images there are, the smaller it is."""
CROP_SIDE = 320
"""Longest side of the picture of a crop, in pixels."""
OBJECT_SIDE_MIN = 160
"""A prompt and its mask get a crop when the picture of the whole image would show them smaller than this, in pixels."""
CONTEXT, CROP_CONTEXT = 0.25, 0.6
"""Margin around prompt and mask, as a fraction of their longer side, of the first view and of a crop."""
QUALITY = 70
"""Quality of the WebP files, which are a third smaller than JPEG files that look the same."""
MAX_IMAGE_PIXELS = 100_000_000
READERS = 4
"""Number of images fetched and decoded at the same time: they come over a network, and each may be large."""

Window = tuple[int, int, int, int]
"""XYXY in pixels of the upright image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The picture in which a prompt is shown, or the reason why there is none."""

    note: str = ""
    """Why there is no picture; empty when there is one."""
    picture: str = ""
    """Name of the picture in `Pictures.webp`."""
    frame: Window = (0, 0, 0, 0)
    """The part of the image that the picture shows."""
    window: Window = (0, 0, 0, 0)
    """The part of the image around prompt and mask."""
    image_hw: tuple[int, int] = (0, 0)
    """Height and width of the upright image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The pictures in which some prompts are shown."""

    webp: tuple[tuple[str, str], ...]
    """Name and WebP file in base64 of each picture."""
    seen: dict[str, Seen]
    """Where each prompt is shown, by prompt_id."""


def pictures(rows: Sequence[dict[str, Any]]) -> Pictures:
    """Open each image of `rows` once, and make the pictures in which their prompts are shown."""
    by_image: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_image.setdefault(row["image_uri"], []).append(row)
    side = int(np.clip(math.sqrt(PIXELS_MAX / max(1, len(by_image))), SIDE_MIN, SIDE_MAX))
    with ThreadPoolExecutor(READERS) as pool:
        done = list(pool.map(lambda item: _of_image(f"p{item[0]}", item[1], side), enumerate(by_image.values())))
    return Pictures(
        webp=tuple(one for webp, _ in done for one in webp),
        seen={prompt_id: seen for _, group in done for prompt_id, seen in group.items()},
    )


def webp(image_rgb: NDArray[np.uint8]) -> str:
    """Encode an image (H, W, 3) as a WebP file in base64."""
    file = io.BytesIO()
    Image.fromarray(image_rgb).save(file, "WEBP", quality=QUALITY, method=2)
    return base64.b64encode(file.getvalue()).decode("ascii")


def read_image(image_uri: str) -> NDArray[np.uint8]:
    """Read an image (H, W, 3) with all its pixels, upright; raises `ImageError` and `StorageError`."""
    return decode_image(read_file(image_uri), name=image_uri, max_pixels=MAX_IMAGE_PIXELS)


def read_file(image_uri: str) -> bytes:
    """Read the file of an image; raises `ImageError` for an annotation without one, and `StorageError`."""
    if not image_uri:
        raise ImageError("the annotation names no image")
    return read_bytes(image_uri)


def drawable(numbers: Sequence[float] | None) -> bool:
    """Return whether all numbers of a box or a point are finite.

    The readers keep only finite boxes and points, but a `Prompt` made by hand may hold anything.
    """
    return numbers is not None and all(number is not None and math.isfinite(number) for number in numbers)


def _of_image(name: str, rows: list[dict[str, Any]], side: int) -> tuple[list[tuple[str, str]], dict[str, Seen]]:
    try:
        pixels = read_image(rows[0]["image_uri"])
    except (ImageError, StorageError) as error:
        return [], {row["prompt_id"]: Seen(note=str(error)) for row in rows}
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    files: dict[str, str] = {}
    seen: dict[str, Seen] = {}
    for row in rows:
        if row["mask_size"] is not None and tuple(row["mask_size"]) != (height, width):
            made = " x ".join(str(n) for n in reversed(row["mask_size"]))
            seen[row["prompt_id"]] = Seen(note=f"the image is now {width} x {height}, the mask was made at {made}")
            continue
        part = _part(row)
        window = _window(part, CONTEXT, (height, width))
        shown, frame = name, (0, 0, width, height)
        if scale < 1 and max(window[2] - window[0], window[3] - window[1]) * scale < OBJECT_SIDE_MIN:
            shown, frame = f"{name}-{len(files)}", _window(part, CROP_CONTEXT, (height, width))
        if shown not in files:
            x0, y0, x1, y1 = frame
            files[shown] = webp(_reduced(pixels[y0:y1, x0:x1], side if shown == name else CROP_SIDE))
        seen[row["prompt_id"]] = Seen(picture=shown, frame=frame, window=window, image_hw=(height, width))
    return list(files.items()), seen


def _reduced(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    scale = side / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(n * scale)) for n in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _part(row: dict[str, Any]) -> NDArray[np.float64]:
    """Points and corners (N, 2) of prompt and mask, in pixels of the image; N is 0 when the row has neither."""
    corners: list[tuple[float, float]] = [point for point in row["points_xy"] or () if drawable(point)]
    if drawable(row["box_xyxy"]):
        corners += [tuple(row["box_xyxy"][:2]), tuple(row["box_xyxy"][2:])]
    if row["area"]:
        x, y, w, h = row["bbox_xywh"]
        corners += [(x, y), (x + w, y + h)]
    return np.array(corners, dtype=np.float64).reshape(-1, 2)


def _window(part: NDArray[np.float64], context: float, image_hw: tuple[int, int]) -> Window:
    """The window around `part` (N, 2) with its margin; the whole image when N is 0."""
    height, width = image_hw
    if not len(part):
        return 0, 0, width, height
    inside = np.clip(part, 0, [width, height])
    low, high = inside.min(axis=0), inside.max(axis=0)
    margin = max(context * float((high - low).max()), 16.0)
    x0, y0 = np.maximum(np.floor(low - margin), 0).astype(int).tolist()
    x1, y1 = np.minimum(np.ceil(high + margin), [width, height]).astype(int).tolist()
    return x0, y0, x1, y1
