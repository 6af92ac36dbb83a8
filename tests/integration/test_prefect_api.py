"""Without a Prefect server that answers, the command says so in a line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEAD = "http://127.0.0.1:9/api"
NO_TEMPORARY_SERVER = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "0"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"PREFECT_API_URL": DEAD}, [DEAD, "PREFECT_API_URL"]), (NO_TEMPORARY_SERVER, ["no temporary Prefect server"])],
    ids=["dead URL", "no temporary server"],
)
def test_no_server_is_one_line(settings: dict[str, str], words: list[str], annotations: Path, tmp_path: Path) -> None:
    arguments = [f"--annotations={annotations}", f"--images={tmp_path / 'images'}", f"--output={tmp_path / 'table'}"]
    command = [sys.executable, "-c", "from flows.cli import main; main()", "refine", "--model=tiny", *arguments]
    # A home of its own, so that no profile of the user names a server.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect")} | settings
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    *_, line = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert line.startswith("error: ")
    assert all(word in line for word in words)
    assert "Traceback" not in done.stderr
