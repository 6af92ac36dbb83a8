"""Show the progress of a run in the terminal, in the log and as a Prefect artifact."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger
from rich import progress as bars
from rich.console import Console

from stable_sam.records import ShardReport
from stable_sam.wording import counted

_ARTIFACT_EVERY_S = 2.0
_LOG_EVERY_S = 30.0


class Progress:
    """Shows the progress of the refining from its start to its end; it must be used inside a Prefect run."""

    def __init__(self, *, total_images: int, done_images: int) -> None:
        """Count `done_images` of `total_images` as committed before."""
        self._total = max(total_images, 1)
        self._done = done_images
        self._failed = 0
        self._logger = get_run_logger()
        self._last_update = self._last_log = time.monotonic()
        self._bar = bars.Progress(
            bars.TextColumn("refining"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("images, failed prompts: {task.fields[failed]}"),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Self:
        """Create the artifact and draw the progress bar."""
        if self._done:
            self._logger.info("Continuing a run: %d of %d images were committed before.", self._done, self._total)
        artifact_id = create_progress_artifact(
            progress=self._percent, key="refine-progress", description="Images refined and committed"
        )
        assert isinstance(artifact_id, UUID), "Prefect returns a coroutine only where an event loop runs"
        self._artifact_id = artifact_id
        self._bar.start()
        self._task = self._bar.add_task("refining", total=self._total, completed=self._done, failed=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the final state in the terminal and in the artifact."""
        self._bar.stop()
        self._update_artifact()

    def advance(self, report: ShardReport) -> None:
        """Count the images and failed prompts of a finished shard."""
        self._done += report.images
        self._failed += report.failed
        self._bar.update(self._task, completed=self._done, failed=self._failed)
        now = time.monotonic()
        if now - self._last_update >= _ARTIFACT_EVERY_S:
            self._last_update = now
            self._update_artifact()
        if now - self._last_log >= _LOG_EVERY_S:
            self._last_log = now
            self._logger.info(
                "%d of %s refined, %s failed",
                self._done,
                counted(self._total, "image"),
                counted(self._failed, "prompt"),
            )

    @property
    def _percent(self) -> float:
        return min(100.0, 100.0 * self._done / self._total)

    def _update_artifact(self) -> None:
        try:
            update_progress_artifact(artifact_id=self._artifact_id, progress=self._percent)
        except Exception as error:
            # A busy Prefect server must not end the run: only its progress is shown late.
            self._logger.warning("The progress artifact was not updated: %s", error)
