"""A reader that opens the table again and again while it is written, and says when it saw part of a version.

python -m tests.reliability.reader TABLE

Reads until its input is closed, then prints a JSON object: polls, versions seen, violations.
"""

from __future__ import annotations

import json
import select
import sys
from collections import Counter

from deltalake import DeltaTable

from stable_sam.table.log import list_runs, open_table
from stable_sam.table.query import query

PAUSE_S = 0.5
_SQL = """
    WITH found AS (SELECT run_id, count(*) AS n FROM history GROUP BY run_id)
    SELECT (SELECT count(*) FROM runs LEFT JOIN found USING (run_id) WHERE n IS DISTINCT FROM "rows") AS runs_in_part,
           (SELECT count(*) FROM found ANTI JOIN runs USING (run_id)) AS rows_without_run,
           (SELECT count(*) - count(DISTINCT (prompt_id, revision)) FROM history) AS twice,
           (SELECT count(*) - count(DISTINCT prompt_id) FROM masks) AS twice_current
"""


class Watch:
    """What was seen so far."""

    def __init__(self) -> None:
        self.polls = 0
        self.versions: set[int] = set()
        self.violations: list[str] = []

    def poll(self, table_uri: str) -> None:
        """Look once, through the Delta log and through the views; before the first version there is nothing to see."""
        try:
            table = open_table(table_uri)
            if table is None:
                if self.versions:
                    self.violations.append("the table is gone")
                return
            self.polls += 1
            self.violations += self._look(table)
            self.violations += [
                f"views: {name} = {count}" for name, count in query(table_uri, _SQL).to_pylist()[0].items() if count
            ]
        except Exception as error:
            self.violations.append(f"cannot be read: {type(error).__name__}: {error}")

    def _look(self, table: DeltaTable) -> list[str]:
        version = table.version()
        rows = table.to_pyarrow_dataset().to_table(["run_id", "prompt_id", "revision"]).to_pylist()
        runs = [run for run in list_runs(table) if run.version <= version]
        found = Counter(row["run_id"] for row in rows)
        problems = [
            f"version {version}: run {run.run_id} has {found[run.run_id]} of {run.rows} rows"
            for run in runs
            if found[run.run_id] != run.rows
        ]
        if strangers := found.keys() - {run.run_id for run in runs}:
            problems.append(f"version {version}: rows of {len(strangers)} unknown runs")
        if twice := len(rows) - len({(row["prompt_id"], row["revision"]) for row in rows}):
            problems.append(f"version {version}: {twice} rows twice")
        if self.versions and version < max(self.versions):
            problems.append(f"version {version} after version {max(self.versions)}")
        self.versions.add(version)
        return problems


def main() -> None:
    """Poll until the input ends."""
    watch = Watch()
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        watch.poll(sys.argv[1])
    watch.poll(sys.argv[1])
    seen = {"polls": watch.polls, "versions": sorted(watch.versions), "violations": watch.violations}
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
