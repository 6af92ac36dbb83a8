"""`stable-sam demo-images`: real photographs to try things on, out of the installed scikit-image package."""

from __future__ import annotations

from typing import Annotated

import typer

PHOTOGRAPHS = {
    "astronaut.png": "astronaut.png",
    "camera.png": "camera.png",
    "cat.png": "chelsea.png",
    "coffee.png": "coffee.png",
    "coins.png": "coins.png",
    "galaxies.jpg": "hubble_deep_field.jpg",
    "motorcycle.png": "motorcycle_left.png",
    "rocket.jpg": "rocket.jpg",
}
"""Our name: the name inside the wheel. All are CC0 or in the public domain."""


def demo_images(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder to write them to (path or URI).")],
) -> None:
    """Write the demo's photographs to DIR, without any download; those that are there already are left as they are."""
    from importlib.resources import files

    from stable_sam.errors import InputError
    from stable_sam.storage.files import exists, join, read_bytes, write_bytes

    try:
        data = files("skimage") / "data"
    except ModuleNotFoundError:
        raise InputError("demo-images: expected scikit-image to be installed: pip install 'stable-sam[demo]'") from None
    for name, packaged in PHOTOGRAPHS.items():
        source = data / packaged
        if not source.is_file():
            raise InputError(f"demo-images: expected {packaged} inside the installed scikit-image, it has none")
        content, uri = source.read_bytes(), join(folder, name)
        # A file written again has a new version, and with it the whole run would be a new one.
        if not exists(uri) or read_bytes(uri) != content:
            write_bytes(uri, content)
    typer.echo(f"{len(PHOTOGRAPHS)} photographs are in {folder}")
