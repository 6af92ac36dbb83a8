"""What `refine-image` and `explain` share: their options, and reading and writing one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stable_sam.records import Prompt

ImageFile = Annotated[str, typer.Argument(metavar="IMAGE", help="Image file (path or URI).")]
Box = Annotated[
    tuple[float, float, float, float] | None,
    typer.Option(help="Weak box in pixels of the upright image.", metavar="X0 Y0 X1 Y1"),
]
Points = Annotated[
    list[str] | None,
    typer.Option(
        help="Point in pixels of the upright image; LABEL is 1 on the object and 0 on the background. May be repeated.",
        metavar="X Y LABEL",
    ),
]
PromptId = Annotated[
    str,
    typer.Option(
        help="Text that seeds the jittered copies of the prompt. With the prompt_id of a table row, the scores are "
        "those of the row."
    ),
]


class PointCommand(TyperCommand):
    """A command whose option `--point` takes three values and may be repeated, which options of typer cannot do."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Hand every `--point X Y LABEL` to typer as one value."""
        joined: list[str] = []
        rest = list(args)
        while rest:
            joined.append(rest.pop(0))
            if joined[-1] == "--point":
                values: list[str] = []
                # Only numbers are taken: an option or the image file must not become a part of an incomplete point.
                while rest and _are_numbers(rest[0]) and len(_split(" ".join(values))) < 3:
                    values.append(rest.pop(0))
                joined.append(" ".join(values))
        return super().parse_args(ctx, joined)


def read_image(uri: str, prompt: Prompt, max_pixels: int) -> tuple[bytes, NDArray[np.uint8], Prompt]:
    """Read an image file, and check `prompt` against the image.

    Returns the file, the upright image (H, W, 3) uint8 RGB, and the checked prompt. Raises `StorageError`,
    `ImageError`, and `PromptError` with the name of the image.
    """
    from stable_sam.errors import PromptError
    from stable_sam.images.decode import decode_image
    from stable_sam.prompt_check import check_prompt
    from stable_sam.storage.files import read_bytes

    data = read_bytes(uri)
    pixels = decode_image(data, name=uri, max_pixels=max_pixels)
    try:
        return data, pixels, check_prompt(prompt, (pixels.shape[0], pixels.shape[1]))
    except PromptError as error:
        raise PromptError(f"{uri}: {error}") from None


def prompt_of(
    image_uri: str, prompt_id: str, box: tuple[float, float, float, float] | None, points: list[str] | None
) -> Prompt:
    """Make a prompt of the options; raises `PromptError` for a --point that is not three numbers."""
    from stable_sam.errors import PromptError
    from stable_sam.records import Prompt

    points_xy, labels = [], []
    for text in points or []:
        try:
            x, y, label = _split(text)
            points_xy.append((float(x), float(y)))
            labels.append(int(label))
        except ValueError:
            raise PromptError(f"--point: expected X Y LABEL, three numbers, got {text!r}") from None
    return Prompt(
        prompt_id=prompt_id,
        image_id=image_uri,
        image_uri=image_uri,
        box_xyxy=box,
        points_xy=tuple(points_xy),
        point_labels=tuple(labels),
    )


def check_suffix(uri: str, suffixes: tuple[str, ...], why: str) -> None:
    """Raise `InputError` with the reason `why` unless `uri` ends as one of `suffixes`."""
    from stable_sam.errors import InputError

    if not uri.endswith(suffixes):
        raise InputError(f"{uri}: expected the name of a {' or '.join(suffixes)} file: {why}")


def write_image(uri: str, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W) or (H, W, 3) uint8 RGB as JPEG where `uri` ends in .jpg, else as PNG; raises `StorageError`."""
    from io import BytesIO

    import numpy as np
    from PIL import Image

    from stable_sam.storage.files import write_bytes

    buffer = BytesIO()
    kind = "JPEG" if uri.endswith(".jpg") else "PNG"
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format=kind, quality=75)
    write_bytes(uri, buffer.getvalue())


def _split(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _are_numbers(text: str) -> bool:
    try:
        return all(isinstance(float(part), float) for part in _split(text))
    except ValueError:
        return False
