"""The rows to export, read image by image: what does not fit into memory waits in DuckDB's temporary folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, get_args

import duckdb

from stable_sam.errors import ConfigError, InputError
from stable_sam.formats.export_records import ExportCategory, ExportImage, ExportObject, printable
from stable_sam.records import Route
from stable_sam.rle import EncodedMask, decode_mask, encode_mask
from stable_sam.scores import FROM_MODEL
from stable_sam.storage.files import join
from stable_sam.table.log import is_review
from stable_sam.table.query import check_reads, connected, in_sample, rows_of

_COLUMNS = (
    "prompt_id, revision, image_uri, image_id, category_id, category, iscrowd, box_xyxy, mask_size, mask_counts, "
    f"bbox_xywh, area, status, route, verdict, {', '.join(FROM_MODEL)}"
)
_NO_NAME = "object"
_BATCH = 2_000
"""Rows that are Python objects at one time, besides those of one image."""
_WHOLE = "'0|[1-9][0-9]{0,14}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How the pictures of an export are called."""

    images_uri: str
    """The image folder: names are paths below it."""
    copies: bool
    prefix: str | None
    """What stands before the names where tools find the pictures, such as a server's address."""

    def name(self, image_uri: str) -> str:
        """Path in the export, different for different URIs."""
        base = join(self.images_uri, "")
        if image_uri.startswith(base):
            return image_uri.removeprefix(base)
        folder, _, file = image_uri.rpartition("/")
        return f"elsewhere/{hashlib.sha256(folder.encode()).hexdigest()[:8]}/{file}"

    def reference(self, image_uri: str) -> str:
        """As in `ExportImage`."""
        if self.prefix is not None:
            return join(self.prefix, self.name(image_uri))
        return f"images/{self.name(image_uri)}" if self.copies else image_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is to be exported."""

    categories: tuple[ExportCategory, ...]
    images: int
    objects: int
    without_mask: int
    """Rows that were asked for and have no mask: failed, rejected by a reviewer, or empty."""
    run: dict[str, Any]
    """The newest run, as in the view `runs`; its model is that of the newest run that a model made."""
    _connection: duckdb.DuckDBPyConnection

    def read(self, naming: Naming) -> Iterator[ExportImage]:
        """The images in the order of their URIs, each with its objects in the order of their prompt_ids."""
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

    def check_stems(self) -> None:
        """Raise `InputError` when two images differ in nothing but the ending of their names."""
        stem = r"regexp_replace(image_uri, '\.[^./]*$', '')"
        names = "min(image_uri) AS one, max(image_uri) AS other"
        sql = f"SELECT {names} FROM selected GROUP BY {stem} HAVING one < other LIMIT 1"
        for one, other in self._connection.execute(sql).fetchall():
            raise InputError(
                f"{other}: expected images whose names differ in more than the ending, for this format has one label "
                f"file for each name, got {one} too; export them apart, by --where"
            )


@contextmanager
def selected(
    table_uri: str,
    where: str | None = None,
    routes: Sequence[str] = (),
    as_of: str | None = None,
    sample: float | None = None,
) -> Iterator[Selection]:
    """Choose the current rows of a table; where: SQL condition on the view `masks`; sample: see `in_sample`.

    Raises `ConfigError` for an unknown route or no part, `InputError` when the condition is no SQL or nothing is left,
    and what `stable_sam.table.query.query` raises.
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
                f"{table_uri}: expected at least one mask to export, got none"
                + (f" among {without_mask} rows, which have no mask" if without_mask else " that was asked for")
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
    """The categories as the source wrote them, each with its number: its id, where no other category has it."""
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
    """JSON knows neither NaN nor infinity."""
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
