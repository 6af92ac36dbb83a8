"""Selects the rows to export and reads them image by image; DuckDB moves what does not fit into memory to disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, get_args
from urllib.parse import quote

import duckdb

from stable_sam.errors import ConfigError, InputError
from stable_sam.formats.export_records import ExportCategory, ExportImage, ExportObject, printable
from stable_sam.records import Route
from stable_sam.rle import EncodedMask, decode_mask, encode_mask
from stable_sam.scores import FROM_MODEL
from stable_sam.storage.uris import join
from stable_sam.table.log import is_review
from stable_sam.table.query import check_reads, connected, in_sample, rows_of

_COLUMNS = (
    "prompt_id, revision, image_uri, image_id, category_id, category, iscrowd, box_xyxy, mask_size, mask_counts, "
    f"bbox_xywh, area, status, route, verdict, {', '.join(FROM_MODEL)}"
)
_WEB = ("http://", "https://", "/data/")
"""Beginnings of addresses in which a browser would take # or % for something else than a part of a name."""
_NO_NAME = "object"
_STEPS = {"", ".", ".."}
"""Parts of a path that are no names of folders or files."""
_BATCH = 2_000
"""Number of rows that are Python objects at one time, beside those of one image."""
_WHOLE = "'0|[1-9][0-9]{0,14}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How the images of an export are named."""

    images_uri: str
    """The run's image folder; the names are paths below it."""
    copies: bool
    """Whether the images are copied into the export."""
    prefix: str | None
    """What tools put before a name to find the image, such as a server's address; None for the copy or the URI."""
    local_files_root: str | None = None
    """The folder that Label Studio's local storage shows, which must hold the images or their copies."""
    copied_to: str = ""
    """Folder of the copies."""

    def name(self, image_uri: str) -> str:
        """Return the image's path in the export, which differs between any two URIs.

        An image outside the image folder is named after a hash of its folder: `elsewhere/<hash>/<file>`. So is one
        whose path below the folder has a step such as `..`, which would lead out of the export.
        """
        base = join(self.images_uri, "")
        name = image_uri.removeprefix(base)
        if image_uri.startswith(base) and not _STEPS.intersection(name.split("/")):
            return name
        folder, _, file = image_uri.rpartition("/")
        place = hashlib.sha256((image_uri if file in _STEPS else folder).encode()).hexdigest()[:8]
        return f"elsewhere/{place}/{'image' if file in _STEPS else file}"

    def reference(self, image_uri: str) -> str:
        """Return where tools find the image: `ExportImage.reference`.

        Names in addresses of the web are percent-encoded. Raises `InputError` when the image is not below
        `local_files_root`.
        """
        if self.local_files_root is not None:
            file = join(self.copied_to, self.name(image_uri)) if self.copies else image_uri
            base = join(self.local_files_root, "")
            if not file.startswith(base):
                raise InputError(f"--local-files-root {self.local_files_root}: expected the folder to hold {file}")
            return f"/data/local-files/?d={quote(file.removeprefix(base))}"
        if self.prefix is not None:
            name = self.name(image_uri)
            return join(self.prefix, quote(name) if self.prefix.startswith(_WEB) else name)
        return f"images/{self.name(image_uri)}" if self.copies else image_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The rows of a table that are to be exported, counted and ready to be read."""

    categories: tuple[ExportCategory, ...]
    """The categories of the rows that are exported."""
    images: int
    """Number of images with at least one mask."""
    objects: int
    """Number of masks."""
    without_mask: int
    """Number of rows that were asked for and have no mask: failed, rejected by a reviewer, or empty."""
    run: dict[str, Any]
    """The newest run, as in the view `runs`, but with the model of the newest run that a model made."""
    _connection: duckdb.DuckDBPyConnection

    def read(self, naming: Naming) -> Iterator[ExportImage]:
        """Yield the images in the order of their URIs, each with its objects in the order of their prompt_ids."""
        by_key = {(c.category_id, c.category): c.number for c in _keys(self._connection)}
        categories = {c.number: c for c in self.categories}
        own_image_ids, own_ids = _own_ids(self._connection)
        rows = self._connection.sql("SELECT * FROM selected ORDER BY image_uri, prompt_id").to_arrow_reader(_BATCH)
        plain = (row for batch in rows for row in batch.to_pylist())
        place = 0
        for number, (image_uri, group) in enumerate(groupby(plain, key=lambda row: row["image_uri"]), 1):
            objects = []
            for row in group:
                place += 1
                category = categories[by_key[row["category_id"], row["category"]]]
                objects.append(_object(row, category, int(row["prompt_id"]) if own_ids else place))
            yield ExportImage(
                image_uri=image_uri,
                number=int(row["image_id"]) if own_image_ids else number,
                name=naming.name(image_uri),
                size_hw=objects[0].mask.size_hw,
                objects=tuple(objects),
                reference=naming.reference(image_uri),
            )

    def image_uris(self) -> Iterator[str]:
        """Yield the URI of each image once, in no order."""
        for batch in self._connection.sql("SELECT DISTINCT image_uri FROM selected").to_arrow_reader(_BATCH):
            yield from batch["image_uri"].to_pylist()

    def check_stems(self) -> None:
        """Raise `InputError` when the names of two images differ only in their endings."""
        stem = r"regexp_replace(image_uri, '\.[^./]*$', '')"
        names = "min(image_uri) AS one, max(image_uri) AS other"
        sql = f"SELECT {names} FROM selected GROUP BY {stem} HAVING one < other LIMIT 1"
        for one, other in self._connection.execute(sql).fetchall():
            raise InputError(
                f"{other}: expected images whose names differ in more than the ending, because this format names label "
                f"files after images without the ending, got {one} too: export the two apart with --where"
            )


@contextmanager
def selected(
    table_uri: str,
    where: str | None = None,
    routes: Sequence[str] = (),
    as_of: str | None = None,
    sample: float | None = None,
) -> Iterator[Selection]:
    """Select current rows of a table; the selection can be read until the block ends.

    `where` is an SQL condition on the view `masks`; `routes` keeps only rows of these routes; `sample` is the part of
    the rows to keep, as in `stable_sam.table.query.in_sample`; `as_of` is as in `stable_sam.table.query.query`.
    Raises `ConfigError` for an unknown route or a sample out of range, `InputError` when the condition is not valid SQL
    or no mask is left, and what `stable_sam.table.query.query` raises.
    """
    for route in routes:
        if route not in get_args(Route):
            raise ConfigError(f"routes: expected {', '.join(get_args(Route))}, got {route!r}")
    conditions = [f"({where}\n)"] if where else []
    if routes:
        conditions.append(f"route IN ({', '.join(repr(route) for route in routes)})")
    if sample is not None:
        conditions.append(in_sample(sample))
    with connected(table_uri, as_of=as_of) as connection:
        condition = " AND ".join(conditions) or "true"
        check_reads(f"SELECT 1 WHERE {condition}")
        has_mask = "mask_counts IS NOT NULL AND area > 0"
        connection.execute(
            f"CREATE TABLE selected AS SELECT {_COLUMNS}, {has_mask} AS has_mask FROM masks WHERE {condition}"
        )
        without_mask = _count(connection, "count(*) FILTER (NOT has_mask)")
        connection.execute("DELETE FROM selected WHERE NOT has_mask")
        if _count(connection, "count(*)") == 0:
            raise InputError(
                f"{table_uri}: expected at least one mask to export, got none that was asked for"
                + (f" (rows without a mask: {without_mask})" if without_mask else "")
            )
        runs = rows_of(connection, "SELECT * FROM runs ORDER BY revision DESC")
        models = [run["model_id"] for run in runs if not is_review(run["model_id"])]
        yield Selection(
            categories=_categories(_keys(connection)),
            images=_count(connection, "count(DISTINCT image_uri)"),
            objects=_count(connection, "count(*)"),
            without_mask=without_mask,
            run=runs[0] | {"model_id": models[0]},
            _connection=connection,
        )


@dataclass(frozen=True, slots=True)
class _Key:
    category_id: int | None
    category: str | None
    number: int = 0

    @property
    def name(self) -> str:
        if self.category is not None:
            return printable(self.category)
        return _NO_NAME if self.category_id is None else str(self.category_id)


def _keys(connection: duckdb.DuckDBPyConnection) -> list[_Key]:
    """Return the categories as the source wrote them, numbered by their ids, or above all ids when an id is taken."""
    found = connection.execute("SELECT DISTINCT category_id, category FROM selected ORDER BY ALL").fetchall()
    keys = [_Key(category_id, category) for category_id, category in found]
    taken: set[int] = set()
    numbered = []
    for key in keys:
        number = key.category_id
        if number is None or number < 0 or number in taken:
            number = max([0, *taken, *(k.category_id or 0 for k in keys)]) + 1
        taken.add(number)
        numbered.append(replace(key, number=number))
    return numbered


def _categories(keys: list[_Key]) -> tuple[ExportCategory, ...]:
    indexes = {name: index for index, name in enumerate(dict.fromkeys(key.name for key in keys))}
    return tuple(ExportCategory(number=key.number, name=key.name, index=indexes[key.name]) for key in keys)


def _own_ids(connection: duckdb.DuckDBPyConnection) -> tuple[bool, bool]:
    """Whether the source's ids of images and of prompts are whole numbers that can stand for themselves."""
    ((images, prompts),) = connection.execute(
        f"""
        SELECT bool_and(regexp_full_match(image_id, {_WHOLE})) AND count(DISTINCT image_id) = count(DISTINCT image_uri)
                   AND count(DISTINCT (image_id, image_uri)) = count(DISTINCT image_uri),
               bool_and(regexp_full_match(prompt_id, {_WHOLE}))
        FROM selected
        """
    ).fetchall()
    return bool(images), bool(prompts)


def _object(row: dict[str, Any], category: ExportCategory, number: int) -> ExportObject:
    box, scores = row["box_xyxy"], {name: _finite(row[name]) for name in FROM_MODEL}
    score = 1.0 if row["status"] == "reviewed" else scores["quality"]
    details = {"status": row["status"], "route": row["route"], "verdict": row["verdict"], **scores}
    return ExportObject(
        prompt_id=row["prompt_id"],
        number=number,
        revision=row["revision"],
        category=category,
        iscrowd=bool(row["iscrowd"]),
        mask=_mask(row),
        box_xyxy=None if box is None else tuple(box),
        score=scores["predicted_iou"] if score is None else score,
        details={name: value for name, value in details.items() if value is not None},
    )


def _finite(score: float | None) -> float | None:
    """Return the score, or None when it is not finite, because JSON has neither NaN nor infinity."""
    return score if score is not None and math.isfinite(score) else None


def _mask(row: dict[str, Any]) -> EncodedMask:
    height, width = row["mask_size"]
    if row["bbox_xywh"] is None:
        return encode_mask(decode_mask((height, width), row["mask_counts"]))
    x, y, w, h = row["bbox_xywh"]
    return EncodedMask(size_hw=(height, width), counts=row["mask_counts"], area=row["area"], bbox_xywh=(x, y, w, h))


def _count(connection: duckdb.DuckDBPyConnection, what: str) -> int:
    ((count,),) = connection.execute(f"SELECT {what} FROM selected").fetchall()
    return int(count)
