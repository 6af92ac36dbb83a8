"""Dead runs end and living ones do not: the automation of deployments/automations.yaml over real heartbeats.

    python -m tests.reliability.heartbeats

A Prefect server, heartbeats every 30 s (the least there is) and `within` three times that, as in production. Two runs
live for twice that, a third is killed. Five minutes. Exits with 1 when the wrong run ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.reliability.prefect_server import prefect_server

FILE = Path(__file__).parents[2] / "deployments" / "automations.yaml"
DEAD = "stable-sam: end runs that are dead"
HEARTBEAT_S = 30
WITHIN_S = 3 * HEARTBEAT_S
LIVING_S = 2 * WITHIN_S
PATIENCE_S = WITHIN_S + 60
RUN = """
import sys, time
from prefect import flow

@flow(name="refine-dataset", flow_run_name="{name}")
def refine(name: str, seconds: float) -> None:
    time.sleep(seconds)

refine(sys.argv[1], float(sys.argv[2]))
"""


def main() -> int:
    """Print a line for each run; 0 when all of them ended as they must."""
    folder = Path(tempfile.mkdtemp(prefix="stable-sam-heartbeats-"))
    script = folder / "run.py"
    script.write_text(RUN)
    with prefect_server(folder):
        os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = str(HEARTBEAT_S)
        _apply(folder / "automations.yaml")
        runs = {
            name: subprocess.Popen([sys.executable, script, name, seconds])
            for name, seconds in {"living-1": str(LIVING_S), "living-2": str(LIVING_S), "killed": "3600"}.items()
        }
        _wait_until(lambda: set(_states()) == runs.keys() and set(_states().values()) == {"Running"}, 120)
        time.sleep(HEARTBEAT_S)
        runs["killed"].kill()
        killed_at = time.monotonic()
        _wait_until(lambda: _states()["killed"] == "Crashed", PATIENCE_S)
        noticed = time.monotonic() - killed_at
        for name in ("living-1", "living-2"):
            runs[name].wait(LIVING_S + 120)
        time.sleep(WITHIN_S + 15)  # the last heartbeat of a run that has ended must end nothing
        states = _states()
    expected = {"living-1": "Completed", "living-2": "Completed", "killed": "Crashed"}
    for name, state in sorted(states.items()):
        sys.stdout.write(f"{name}: {state}, expected {expected[name]}\n")
    sys.stdout.write(f"killed run noticed after {noticed:.0f} s (heartbeat {HEARTBEAT_S} s, within {WITHIN_S} s)\n")
    return int(states != expected)


def _apply(file: Path) -> None:
    document = yaml.safe_load(FILE.read_text())
    (dead,) = (one for one in document["automations"] if one["name"] == DEAD)
    dead["trigger"]["within"] = WITHIN_S
    file.write_text(yaml.safe_dump({"automations": [dead]}))
    command = [sys.executable, "-c", "from flows.cli import main; main()", "automations", "--file", str(file)]
    subprocess.run(command, check=True)


def _states() -> dict[str, str | None]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {run.name: run.state_name for run in client.read_flow_runs()}


def _wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"waited {seconds:g} s in vain; runs: {_states()}")
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
