"""Tells a table that its images lie elsewhere now, so that they stay the same images and are found there.

A night recognises moved images by their versions. Where these cannot show it (copies have other times, other stores
other versions), a user says it once. The rows then get the new `image_uri` and the fingerprints that the next night
computes for it. Nothing is refined, and each row stays the row of its run.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from stable_sam.errors import InputError, NotFoundError
from stable_sam.formats.image_folder import link_problem
from stable_sam.runs.compact import MOVED, compact
from stable_sam.runs.compare import load_versions
from stable_sam.storage.files import iter_versions, links_left_out
from stable_sam.storage.uris import absolute_uri, join
from stable_sam.table.current import first_row, load_live, workspace
from stable_sam.table.fingerprint import STORED_PROMPT_HASH, hash_with
from stable_sam.table.log import list_runs, open_table

_MOVE = f"""
    INSERT INTO moved
    SELECT prompt_id, revision, new_uri, CASE
        WHEN {hash_with(error="NULL::VARCHAR")} = {STORED_PROMPT_HASH}
        THEN printf('%016x%016x', {hash_with(image_uri="new_uri", error="NULL::VARCHAR")}, image_hash)
        ELSE fingerprint
    END
    FROM (
        SELECT *, $to || substr(image_uri, length($from) + 1) AS new_uri FROM candidates
        WHERE starts_with(image_uri, $from)
    ) JOIN versions ON versions.uri = new_uri
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveReport:
    """What moving the images of a table did or, for a dry run, would do."""

    from_uri: str
    to_uri: str
    rows: int
    """Number of rows whose image lies at the same path below the new folder."""
    missing: int
    """Number of rows of the old folder whose image does not lie below the new folder; they stay as they are."""
    version: int | None
    """Delta version with the new rows; None for a dry run."""


def move_images(
    table_uri: str, *, to_uri: str, from_uri: str | None = None, follow_links: bool = False, dry_run: bool = False
) -> MoveReport:
    """Rewrite the rows of images below `from_uri` that lie at the same path below `to_uri` now.

    from_uri: None takes the image folder of the newest run that refined something.
    follow_links: whether links that lead out of the new folder are images of it, as in `SourceConfig`.
    Older versions of the table keep their rows. Raises `NotFoundError` when there is no table, `InputError` when no
    image of the table lies below both folders, and what `compact` raises.
    """
    table = open_table(table_uri)
    if table is None:
        raise NotFoundError(f"{table_uri}: expected a masks table (the --output of a finished refine), found none")
    old = from_uri or next((run.images_uri for run in list_runs(table) if not run.is_review), "")
    to = join(absolute_uri(to_uri), "")

    def move(connection: duckdb.DuckDBPyConnection) -> int:
        load_versions(connection, to, iter_versions(to, follow_links=follow_links), None)
        connection.execute(_MOVE, {"from": base, "to": to})
        return int(first_row(connection, "SELECT count(*) FROM moved")[0])

    with workspace() as connection:
        load_live(connection, table)
        connection.execute(MOVED)
        for base in _spellings(old):
            below = "SELECT count(*) FROM candidates WHERE starts_with(image_uri, $from)"
            found = int(first_row(connection, below, {"from": base})[0])
            if found:
                break
        rows = move(connection)
    if rows == 0:
        link = next(links_left_out(to, follow_links=follow_links), None)
        found_links = "" if link is None else f" ({link_problem(link)})"
        raise InputError(
            f"{to}: expected the images that the table has below {base}, found none of them{found_links}; "
            "give the folder that holds them with --to, and the folder of the table's image_uri with --from"
        )
    version = None if dry_run else compact(table_uri, move=move).version
    return MoveReport(from_uri=base, to_uri=to, rows=rows, missing=found - rows, version=version)


def _spellings(folder_uri: str) -> tuple[str, ...]:
    """Return the beginnings that an `image_uri` below the folder may have: older versions kept URIs as given."""
    plain = absolute_uri(folder_uri)
    return tuple(join(uri, "") for uri in (folder_uri, plain, f"file://{plain}"))
