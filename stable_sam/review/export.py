"""Exports masks of a table in the format of another tool, with a list of what was sent: see docs/review.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stable_sam.errors import ConfigError, InputError, StorageError
from stable_sam.formats.export_records import SENT, ExportImage, Target
from stable_sam.formats.registry import WRITERS
from stable_sam.images.decode import MAX_IMAGE_BYTES
from stable_sam.review.selection import Naming, selected
from stable_sam.storage.files import absolute_uri, iter_versions, join, read_bytes, write_bytes
from stable_sam.storage.json_lists import json_lists
from stable_sam.storage.parallel import ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export wrote, as numbers of images and of objects."""

    images: int
    objects: int
    without_mask: int
    """Number of rows that were asked for and have no mask to write."""
    problems: tuple[str, ...]
    """A line for each image that could not be read; its masks were left out."""


def export(
    table_uri: str,
    to: str,
    out_uri: str,
    *,
    where: str | None = None,
    routes: Sequence[str] = (),
    sample: float | None = None,
    as_of: str | None = None,
    polygons: bool | None = None,
    copy_images: bool | None = None,
    image_prefix: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportReport:
    """Write the current masks of a table to the folder `out_uri`, image by image.

    `to` is a format of `WRITERS`. `where` is an SQL condition on the view `masks`; `routes` keeps only rows of these
    routes; `sample` is the part of the rows to keep, as in `stable_sam.table.query.in_sample`; `as_of` is as in
    `stable_sam.table.query.query`.
    `polygons` writes polygons instead of pixel masks, and `copy_images` copies the images into the export; None leaves
    the choice to the format. `image_prefix` is what tools put before an image's name to find it.
    `progress` is called with the number of images that are done and the number of all images.

    Raises `ConfigError` for an unknown format or route, `InputError` when the condition is not valid SQL, no mask is
    left or the folder is not empty, and `StorageError`.
    """
    form = WRITERS.get(to)
    if form is None:
        raise ConfigError(f"--to: expected {', '.join(WRITERS)}, got {to!r}")
    if next(iter_versions(out_uri), None) is not None:
        raise InputError(f"{out_uri}: expected a new or empty folder to export to, got one with files")
    with selected(table_uri, where, routes, as_of, sample) as selection:
        if form.names_by_stem:
            selection.check_stems()
        copies = form.copies if copy_images is None else copy_images
        filters = {"where": where, "routes": list(routes) or None, "sample": sample, "as_of": as_of}
        run = {name: selection.run[name] for name in ("run_id", "revision", "model_id")}
        header = {"format": to, "table_uri": absolute_uri(table_uri), **run, **filters}
        target = Target(
            uri=out_uri,
            categories=selection.categories,
            polygons=form.polygons if polygons is None else polygons,
            header=header,
            copies=copies and not form.embeds,
        )
        naming = Naming(images_uri=selection.run["images_uri"], copies=target.copies, prefix=image_prefix)
        problems, images, objects = [], 0, 0
        with form.write(target) as add, json_lists(join(out_uri, SENT), header, ("images",)) as (sent,):
            for image, data, problem in _with_content(selection.read(naming), target, form.embeds and copies):
                if problem is None:
                    sent(_sent(image, add(image, data)))
                    images, objects = images + 1, objects + len(image.objects)
                else:
                    problems.append(problem)
                progress(images + len(problems), selection.images)
    return ExportReport(images=images, objects=objects, without_mask=selection.without_mask, problems=tuple(problems))


def _with_content(
    images: Iterator[ExportImage], target: Target, embeds: bool
) -> Iterator[tuple[ExportImage, bytes | None, str | None]]:
    """Yield each image with the content of its file (None unless `embeds`) and with the reason when it cannot be read.

    This also copies the images, where the export does that.
    """

    def fetch(image: ExportImage) -> tuple[ExportImage, bytes | None, str | None]:
        try:
            data = read_bytes(image.image_uri, max_bytes=MAX_IMAGE_BYTES)
        except StorageError as error:
            return image, None, str(error)
        if target.copies:
            write_bytes(join(target.uri, "images", image.name), data)
        return image, data if embeds else None, None

    return ahead(fetch, images) if embeds or target.copies else ((image, None, None) for image in images)


def _sent(image: ExportImage, places: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "image_uri": image.image_uri,
        "name": image.name,
        "size": list(image.size_hw),
        "sent": [
            {"prompt_id": item.prompt_id, "revision": item.revision, **place}
            for item, place in zip(image.objects, places, strict=True)
        ],
    }
