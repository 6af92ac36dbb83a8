"""End a deployed run with its worker, and tell the Prefect server of a run whose process was killed.

A worker that is stopped kills the process of its run and tells the server nothing. The run would stay Running and keep
the only slot of the deployment, until its heartbeats are missed. A second process, which waits for the end of the
first, tells the server in its place.

When the worker itself is killed, the process of its run would go on, but nobody could cancel it, and its output has no
reader any more, at which Prefect's log ends it in the end. So it ends at once, and the next run continues.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from uuid import UUID

_LOOK_EVERY_S = 1.0
_TURN_S = 10.0
"""Seconds in which a worker that lives says itself what became of the run."""
_TURN_OF_CANCELLING_S = 60.0
"""The same for a run that is being cancelled: the worker first waits for the processes of the run."""
_GIVE_UP_S = 180.0
"""Seconds without an answer of the server; the automation for dead runs remains."""
_MESSAGE = "The process of this run was killed. The next run keeps its finished shards."

_watchers: list[subprocess.Popen[bytes]] = []


def end_with_worker(flow_run_id: str) -> None:
    """End this process, by SIGTERM, when the worker that started it ends, and have the server told if it is killed.

    The second process takes 10 MB and no time. On systems other than Linux the worker's end ends nothing.
    """
    # Imported here because the second process does without.
    from tasks.actors.child import signal_when_parent_ends
    from tasks.actors.session import end_by_sigterm

    end_by_sigterm()
    signal_when_parent_ends(signal.SIGTERM)
    code = f"from flows.killed_runs import watch; watch({flow_run_id!r})"
    watcher = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,  # closed by the system when this process ends, however it ends
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
        start_new_session=True,  # a worker that cancels a run ends the whole group of its processes
    )
    _watchers.append(watcher)


def watch(flow_run_id: str) -> None:
    """Wait until the standard input is closed; then end the run on the server, unless it has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # systemd sends it to every process of a service
    sys.stdin.buffer.read()
    closed = time.monotonic()
    while (waited := time.monotonic() - closed) < _GIVE_UP_S:
        with suppress(Exception):  # the server may be away for a moment
            if _has_ended(UUID(flow_run_id), waited):
                return
        time.sleep(_LOOK_EVERY_S)


def _has_ended(flow_run_id: UUID, waited: float) -> bool:
    """Return whether the run has ended on the server, and end it when nobody else did so in time."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled, Crashed

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
        if state is None or not (state.is_running() or state.is_cancelling()):
            return True
        if waited < (_TURN_OF_CANCELLING_S if state.is_cancelling() else _TURN_S):
            return False
        last = Cancelled if state.is_cancelling() else Crashed
        client.set_flow_run_state(flow_run_id, last(message=_MESSAGE))
    return True
