"""Compares the source of a run with the table: which prompts are new, changed, to be refreshed or withdrawn.

All of this happens in DuckDB tables that spill to a temporary folder, so that memory does not grow with the dataset:

    versions    uri, image_hash, looked_at         the files below the image folder
    source      PROMPTS_SCHEMA, prompt_hash,       the prompts as read
                former_hash
    live        see stable_sam.table.current       the prompts that are current in the table
    planned     source, image_hash, reason         the prompts that have to be refined, and why
    moved       prompt_id, is_same                 current prompts that differ only by the path of their image
    withdrawn   prompt_id, revision                the prompts that are current and no longer in the source
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import duckdb
import pyarrow as pa

from stable_sam.errors import AnnotationError, StorageError
from stable_sam.records import Changes
from stable_sam.storage.files import file_version, modified_since
from stable_sam.storage.uris import is_content_version
from stable_sam.table.current import FAILED, OTHER_CODE, OTHER_MODEL, REVIEWED, first_row
from stable_sam.table.fingerprint import DIGEST, FORMER_HASH, NO_VERSION, PROMPT_HASH, hash_of, hash_with
from stable_sam.table.schema import PROMPTS_SCHEMA, SHARD_SCHEMA

REFRESH = ("failed", "model", "all")
"""Unchanged prompts that a user may have refined again. `failed`: those that failed. `model`: those that another model
or config refined. `all`: both, and those that another version of this software refined."""

_CHUNK = 200_000
"""Rows that are passed to DuckDB at a time: enough for all its threads, and a few ten megabytes."""
_LOOKUPS = 16
"""Images outside the image folder that are looked up at the same time."""
_IDS_DIGEST = "coalesce(bit_xor(md5_number(prompt_id)), 0)::VARCHAR"
_REASONS = ("new", "unknown", "prompt_changed", "image_changed", "image_moved", "failed", "other_model", "other_code")
"""Fields of `Changes` that are reasons to refine a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a source differs from the table."""

    changes: Changes
    source_prompts: int
    """Number of prompts in the source."""
    current_prompts: int
    """Number of prompts that will be current when the changes are published."""
    source_digest: str
    """Digest of the source's prompts and of the versions of their images, whatever their order."""
    planned_digest: str
    """Digest of the prompts to refine, computed like `source_digest`."""
    withdrawn_digest: str
    """Digest of the ids of the withdrawn prompts, whatever their order."""


def load_versions(
    connection: duckdb.DuckDBPyConnection,
    images_uri: str,
    listing: Iterable[tuple[str, str]],
    looked_at: frozenset[str] | None,
) -> str:
    """Make the table `versions` and return a digest of it.

    listing: (path below the image folder, version) of each file.
    looked_at: URIs of the images to compare; None compares all of them.
    """
    connection.execute("CREATE TABLE versions(uri VARCHAR, image_hash UBIGINT, looked_at BOOLEAN)")
    base = images_uri.rstrip("/") + "/"
    entries = iter(listing)
    while chunk := list(islice(entries, _CHUNK)):
        names, versions = zip(*chunk, strict=True)
        seen = [looked_at is None or base + name in looked_at for name in names]
        connection.register("chunk", pa.table({"name": names, "version": versions, "seen": seen}))
        connection.execute(f"INSERT INTO versions SELECT $1 || name, {hash_of('version')}, seen FROM chunk", [base])
        connection.unregister("chunk")
    digest = "coalesce(bit_xor(md5_number(uri || '-' || image_hash)), 0)::VARCHAR"
    count, content = first_row(connection, f"SELECT count(*), {digest} FROM versions")
    return f"{count} {content}"


def load_source(
    connection: duckdb.DuckDBPyConnection,
    batches: Iterable[pa.RecordBatch],
    annotations_uri: str,
    places: Iterable[str] = (),
    places_of: Callable[[str], Iterable[str]] | None = None,
) -> int:
    """Make the table `source` from all `batches` (PROMPTS_SCHEMA) and return the number of prompts.

    places: URIs of the source's files and folders, which do not count where the cause of an error names them.
    places_of: returns the files and records of a prompt_id, for the message; None when they are not known.
    Raises `AnnotationError` when there is no prompt or a prompt_id appears twice, and whatever `batches` raises.
    """
    known = sorted(places, key=len, reverse=True)
    cause = "coalesce(cause, error)"
    for number, _ in enumerate(known, 1):
        cause = f"replace({cause}, ${number}, '')"
    hashed = f"""
        SELECT *, {PROMPT_HASH} AS prompt_hash, {FORMER_HASH} AS former_hash
        FROM (SELECT * REPLACE ({cause} AS cause) FROM chunk)
    """
    connection.register("chunk", PROMPTS_SCHEMA.empty_table())
    connection.execute(f"CREATE TABLE source AS {hashed}", known)
    for chunk in _chunks(batches):
        connection.register("chunk", chunk)
        connection.execute(f"INSERT INTO source {hashed}", known)
    connection.unregister("chunk")
    count, ids = first_row(connection, "SELECT count(*), count(DISTINCT hash(prompt_id)) FROM source")
    if count == 0:
        raise AnnotationError(f"{annotations_uri}: expected at least one annotation, got none")
    if ids < count:
        repeated = "SELECT prompt_id FROM source GROUP BY prompt_id HAVING count(*) > 1 ORDER BY prompt_id LIMIT 1"
        for (prompt_id,) in connection.execute(repeated).fetchall():
            both = " and for ".join(islice(places_of(prompt_id), 2)) if places_of else ""
            raise AnnotationError(
                f"{annotations_uri}: prompt_id {prompt_id}: expected every id once, got it "
                + (f"for {both}: give each record an id of its own" if both else "more than once")
            )
    return int(count)


def load_elsewhere(connection: duckdb.DuckDBPyConnection, since: datetime | None) -> int:
    """Add the images outside the image folder to `versions`, by one request each, and return their number.

    since: images that were modified before are not compared; None compares all.
    """
    uris = [
        uri
        for (uri,) in connection.execute(
            "SELECT DISTINCT image_uri FROM source WHERE image_uri <> '' "
            "AND NOT EXISTS (SELECT 1 FROM versions WHERE uri = image_uri)"
        ).fetchall()
    ]

    def look_up(uri: str) -> tuple[str, str, bool] | None:
        with suppress(StorageError):
            return uri, file_version(uri), since is None or bool(modified_since(uri, since))
        return None  # refining this image will fail, and its rows will say why

    with ThreadPoolExecutor(_LOOKUPS) as readers:
        found = [answer for answer in readers.map(look_up, uris) if answer is not None]
    if found:
        connection.executemany(f"INSERT INTO versions SELECT $1, {hash_of('$2')}, $3", found)
    return len(uris)


def load_moved(connection: duckdb.DuckDBPyConnection, images_uri: str) -> None:
    """Make the table `moved` from `source`, `live` and `candidates`.

    images_uri: the image folder. `is_same` says that an equal version is enough for an image to be the same one: the
    version comes from the content, or the image has the path below the folder that it had before. Times and sizes alone
    may be those of another image, because archives set the times and images without compression have one size.
    """
    differ = """
        SELECT source.*, revision, live.prompt_hash AS live_hash, live.image_hash AS live_image
        FROM source JOIN live ON live.prompt_id = source.prompt_id
        WHERE error IS NULL AND live.prompt_hash <> source.prompt_hash
    """
    # A table that is read for nothing would cost more than the whole comparison.
    some = "true" if first_row(connection, f"SELECT count(*) FROM ({differ})")[0] else "false"
    base = images_uri.rstrip("/") + "/"
    connection.execute(
        f"""
        CREATE TABLE moved AS
        SELECT prompt_id, ($content AND live_image <> {NO_VERSION}) OR suffix(
            '/' || was_at, '/' || CASE WHEN starts_with(image_uri, $base) THEN substr(image_uri, length($base) + 1)
                                       ELSE image_uri END
        ) AS is_same
        FROM ({differ}) seen
        JOIN (SELECT prompt_id, revision, image_uri AS was_at FROM candidates WHERE {some}) stored
        USING (prompt_id, revision)
        WHERE {hash_with(image_uri="was_at")} = live_hash
        """,
        {"content": is_content_version(images_uri), "base": base},
    )


def compare(
    connection: duckdb.DuckDBPyConnection, refresh: frozenset[str], *, partial: bool, source_looked_at: bool
) -> Comparison:
    """Make the tables `planned` and `withdrawn` from `source`, `versions`, `live` and `moved`, and count the changes.

    refresh: values of `REFRESH`.
    partial: only a part of the source is compared, so no prompt is withdrawn.
    source_looked_at: False leaves out the prompts whose image is not compared.
    """
    asked = {
        "failed": FAILED if refresh & {"failed", "all"} else 0,
        "other_model": OTHER_MODEL if refresh & {"model", "all"} else 0,
        "other_code": OTHER_CODE if "all" in refresh else 0,
    }
    reasons = "\n".join(f"WHEN live.flags & {flag} > 0 THEN '{reason}'" for reason, flag in asked.items() if flag)
    source = f"""
        SELECT source.*, CASE WHEN error IS NULL THEN coalesce(versions.image_hash, {NO_VERSION})
                              ELSE {NO_VERSION} END AS image_hash
        FROM source LEFT JOIN versions ON versions.uri = source.image_uri
        {"" if source_looked_at else "WHERE versions.looked_at"}
    """
    (live,), reviewed = first_row(connection, "SELECT count(*) FROM live"), 0
    if live == 0:
        # Every prompt is new. A view is enough, and a second copy of the whole source would have to be spilled.
        connection.execute(f"CREATE VIEW planned AS SELECT *, 'new' AS reason FROM ({source})")
    else:
        connection.execute(
            f"""
            CREATE TABLE planned AS SELECT * FROM (
                SELECT seen.*, CASE
                    WHEN live.prompt_id IS NULL THEN 'new'
                    WHEN live.prompt_hash IS NULL THEN 'unknown'
                    WHEN live.prompt_hash <> seen.prompt_hash AND live.prompt_hash IS DISTINCT FROM seen.former_hash
                         AND moved.prompt_id IS NULL THEN 'prompt_changed'
                    WHEN NOT moved.is_same THEN 'image_moved'
                    WHEN seen.error IS NULL AND live.image_hash <> seen.image_hash
                         THEN CASE WHEN moved.prompt_id IS NULL THEN 'image_changed' ELSE 'image_moved' END
                    {reasons}
                END AS reason, live.flags & {REVIEWED} > 0 AS is_reviewed
                FROM ({source}) seen LEFT JOIN live ON live.prompt_id = seen.prompt_id
                LEFT JOIN moved ON moved.prompt_id = seen.prompt_id
            ) WHERE reason IS NOT NULL
            """
        )
        reviewed = first_row(connection, "SELECT count(*) FROM planned WHERE is_reviewed")[0]
        connection.execute("DELETE FROM planned WHERE is_reviewed")
    connection.execute(
        "CREATE TABLE withdrawn AS SELECT prompt_id, revision FROM live WHERE "
        + ("false" if partial else "NOT EXISTS (SELECT 1 FROM source WHERE source.prompt_id = live.prompt_id)")
    )
    found = dict(connection.execute("SELECT reason, count(*) FROM planned GROUP BY reason").fetchall())
    prompts, withdrawn = (
        int(first_row(connection, f"SELECT count(*) FROM {name}")[0]) for name in ("source", "withdrawn")
    )
    new = found.get("new", 0)
    unchanged = live - withdrawn - sum(found.values()) + new
    source_digest = first_row(connection, f"SELECT {DIGEST} FROM ({source})")[0]
    return Comparison(
        changes=Changes(
            **{name: found.get(name, 0) for name in _REASONS},
            withdrawn=withdrawn,
            unchanged=unchanged,
            reviewed=reviewed,
        ),
        source_prompts=prompts,
        current_prompts=live - withdrawn + new if partial else prompts,
        source_digest=source_digest,
        planned_digest=source_digest if live == 0 else first_row(connection, f"SELECT {DIGEST} FROM planned")[0],
        withdrawn_digest=first_row(connection, f"SELECT {_IDS_DIGEST} FROM withdrawn")[0],
    )


def withdrawn_prompts(connection: duckdb.DuckDBPyConnection, rows: int) -> Iterator[pa.Table]:
    """Yield the withdrawn prompts (SHARD_SCHEMA) as they are in their newest rows, in tables of at most `rows` rows."""
    names = ", ".join(SHARD_SCHEMA.names)
    sql = f"SELECT {names} FROM candidates SEMI JOIN withdrawn USING (prompt_id, revision) ORDER BY prompt_id"
    for batch in connection.sql(sql).to_arrow_reader(rows):
        if batch.num_rows:
            yield pa.Table.from_batches([batch]).cast(SHARD_SCHEMA)


def _chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= _CHUNK:
            yield pa.Table.from_batches(held)
            held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held)
