"""Exports masks of a table in the format of another tool, with a list of what was sent: see docs/review.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stable_sam.errors import ConfigError, InputError, StorageError
from stable_sam.formats.export_records import SENT, ExportImage, Layout, Split, Target
from stable_sam.formats.registry import WRITERS
from stable_sam.formats.sources import check_apart
from stable_sam.images.decode import MAX_IMAGE_BYTES
from stable_sam.review.selection import Naming, selected
from stable_sam.storage.files import iter_versions, read_bytes, write_bytes
from stable_sam.storage.json_lists import json_lists
from stable_sam.storage.parallel import ahead
from stable_sam.storage.uris import absolute_uri, check_outside, join

_SEEN = ("http://", "https://", "s3://", "gs://", "azure-blob://", "/data/")
_UNSEEN = (
    "Label Studio shows no image by a path of this machine: give --image-prefix with the address of a server that has "
    "the images, or --local-files-root with the folder that its local storage shows"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export wrote, as numbers of images and of objects."""

    images: int
    objects: int
    without_mask: int
    """Number of rows that were asked for and have no mask to write."""
    problems: tuple[str, ...]
    """A line for each image that could not be read; its masks were left out."""
    warning: str | None = None
    """What the tool will not be able to do with the files; None when nothing is known."""


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
    local_files_root: str | None = None,
    split: str | None = None,
    layout: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportReport:
    """Write the current masks of a table to the folder `out_uri`, image by image.

    `to` is a format of `WRITERS`. `where` is an SQL condition on the view `masks`; `routes` keeps only rows of these
    routes; `sample` is the part of the rows to keep, as in `stable_sam.table.query.in_sample`; `as_of` is as in
    `stable_sam.table.query.query`.
    `polygons` writes polygons instead of pixel masks, and `copy_images` copies the images into the export; None leaves
    the choice to the format. `image_prefix` is what tools put before an image's name to find it.
    `local_files_root` is the folder that Label Studio's local storage shows; the images or their copies are below it.
    `split` divides the images for training, as `Split.parse` reads it, in formats that can hold this.
    `layout` is the tool whose layout the files get, one of the format's `Writer.layouts`; None takes the usual one.
    `progress` is called with the number of images that are done and the number of all images.

    Raises `ConfigError` for an unknown format, route, split or layout, and for a folder among the run's annotations or
    in the table; `InputError` when the condition is not valid SQL, no mask is left, a part of the split is empty or the
    folder is not empty; and `StorageError`.
    """
    form = WRITERS.get(to)
    if form is None:
        raise ConfigError(f"--to: expected {', '.join(WRITERS)}, got {to!r}")
    if split is not None and not form.splits:
        able = ", ".join(name for name, each in WRITERS.items() if each.splits)
        raise ConfigError(f"split: expected a format that can divide images ({able}), got {to!r}")
    if local_files_root is not None and (to != "labelstudio" or image_prefix is not None):
        raise ConfigError("local_files_root: expected the format labelstudio and no image_prefix")
    if layout is not None and layout not in form.layouts:
        able = ", ".join(name for name, each in WRITERS.items() if each.layouts)
        expected = " or ".join(form.layouts) or f"a format that has several ({able})"
        raise ConfigError(f"layout: expected {expected}, got {(layout if form.layouts else to)!r}")
    parts = None if split is None else Split.parse(split)
    if next(iter_versions(out_uri), None) is not None:
        raise InputError(f"{out_uri}: expected a new or empty folder to export to, got one with files")
    with selected(table_uri, where, routes, as_of, sample) as selection:
        check_outside(absolute_uri(out_uri), absolute_uri(table_uri))
        check_apart(selection.run["annotations_uri"], absolute_uri(out_uri))
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
            split=parts,
            layout=Layout() if layout is None else form.layouts[layout],
        )
        naming = Naming(
            images_uri=selection.run["images_uri"],
            copies=target.copies,
            prefix=image_prefix,
            local_files_root=None if local_files_root is None else absolute_uri(local_files_root),
            copied_to=join(absolute_uri(out_uri), "images"),
        )
        if parts is not None:
            _check_parts(parts, map(naming.name, selection.image_uris()))
        problems, images, objects, unseen = [], 0, 0, False
        with form.write(target) as add, json_lists(join(out_uri, SENT), header, ("images",)) as (sent,):
            for image, data, problem in _with_content(selection.read(naming), target, form.embeds and copies):
                if problem is None:
                    sent(_sent(image, add(image, data)))
                    unseen = unseen or not (image_prefix or image.reference.startswith(_SEEN))
                    images, objects = images + 1, objects + len(image.objects)
                else:
                    problems.append(problem)
                progress(images + len(problems), selection.images)
    return ExportReport(
        images=images,
        objects=objects,
        without_mask=selection.without_mask,
        problems=tuple(problems),
        warning=_UNSEEN if to == "labelstudio" and unseen else None,
    )


def _check_parts(split: Split, names: Iterator[str]) -> None:
    """Raise `InputError` unless each part of the split gets an image, because training fails on an empty part."""
    empty = set(split.names)
    for name in names:
        empty.discard(split.part(name))
        if not empty:
            return
    raise InputError(
        f"split: expected images enough for each of {', '.join(split.names)}, got none for {', '.join(sorted(empty))}: "
        "export more images, or without --split"
    )


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
            write_bytes(join(target.uri, target.layout.images, image.name), data)
        return image, data if embeds else None, None

    return ahead(fetch, images) if embeds or target.copies else ((image, None, None) for image in images)


def _sent(image: ExportImage, places: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "image_uri": image.image_uri,
        "name": image.name,
        "size": list(image.size_hw),
        "sent": [
            # By its mask an object is found that comes back without its prompt_id.
            {"prompt_id": item.prompt_id, "revision": item.revision, "mask": item.mask.counts, **place}
            for item, place in zip(image.objects, places, strict=True)
        ],
    }
