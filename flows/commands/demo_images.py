"""`stable-sam demo-images`: write real images to try the commands on, from the installed scikit-image package."""

from __future__ import annotations

from typing import Annotated

import typer

IMAGES = {
    "astronaut.png": "astronaut.png",
    "camera.png": "camera.png",
    "cat.png": "chelsea.png",
    "coffee.png": "coffee.png",
    "coins.png": "coins.png",
    "galaxies.jpg": "hubble_deep_field.jpg",
    "motorcycle.png": "motorcycle_left.png",
    "rocket.jpg": "rocket.jpg",
}
"""Name of each file that is written, and its name inside scikit-image. All are CC0 or in the public domain."""


def demo_images(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder to write the images to (path or URI).")],
) -> None:
    """Write the images of the demo to DIR without any download. Images that are there already are kept."""
    from importlib.resources import files

    from stable_sam.errors import InputError
    from stable_sam.storage.files import exists, read_bytes, write_bytes
    from stable_sam.storage.uris import join

    try:
        data = files("skimage") / "data"
    except ModuleNotFoundError:
        raise InputError(
            "demo-images: expected scikit-image to be installed, run: pip install 'stable-sam[demo]'"
        ) from None
    for name, packaged in IMAGES.items():
        source = data / packaged
        if not source.is_file():
            raise InputError(f"demo-images: expected {packaged} inside the installed scikit-image, found none")
        content, uri = source.read_bytes(), join(folder, name)
        # A file written again would have a new version, and its prompts would be refined again.
        if not exists(uri) or read_bytes(uri) != content:
            write_bytes(uri, content)
    typer.echo(f"{len(IMAGES)} images are in {folder}")
