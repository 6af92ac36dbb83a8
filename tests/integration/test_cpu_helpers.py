"""The Ray side of helpers: what is lost is tried again, then left to the caller, and never waited for without end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stable_sam.config import RayConfig
from stable_sam.timing import StageClock, timed
from tasks.actors import helpers as cpu_helpers
from tasks.actors.helpers import CpuHelpers
from tasks.actors.offload import NoHelperError
from tasks.actors.sizing import ActorPlan

pytestmark = pytest.mark.usefixtures("ray_local")

PLAN = ActorPlan(actors=1, num_cpus=1, num_gpus=1, threads=1)


def work_of(function: Callable[..., Any]) -> Any:
    """In a function, so that it is sent as it is: other processes cannot import the tests."""

    class Work:
        def do(self, *arguments: Any) -> Any:
            return function(*arguments)

    return Work()


def test_work_is_done_in_another_process_with_room_for_every_core() -> None:
    helpers = CpuHelpers(RayConfig(), PLAN)
    assert helpers.room == 2

    def decode(number: int) -> tuple[int, int]:
        with timed("decode"):
            return os.getpid(), number

    with StageClock(spans=1) as clock:
        process, number = helpers.call(work_of(decode), "do", 3)
    assert process != os.getpid()
    assert number == 3
    assert clock.times().seconds.keys() == {"decode"}
    assert [span.stage for span in clock.times().spans] == ["decode"]
    assert CpuHelpers(RayConfig(helpers=1), PLAN).room == 1
    assert CpuHelpers(RayConfig(helpers=0), PLAN).room == 0


def test_a_helper_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    died = tmp_path / "died"

    def die_once() -> str:
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    assert CpuHelpers(RayConfig(), PLAN).call(work_of(die_once), "do") == "done"
    assert died.exists()


def test_what_kills_every_helper_is_handed_back(tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"

    def die() -> None:
        with deaths.open("a") as log:
            log.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    helpers = CpuHelpers(RayConfig(), PLAN)
    with pytest.raises(NoHelperError):
        helpers.call(work_of(die), "do")
    assert deaths.read_text() == "xx"
    assert helpers.room == 2, "the node is well"


def test_what_raises_at_a_helper_is_handed_back() -> None:
    def fail() -> None:
        raise ImportError("another version is installed there")

    with pytest.raises(NoHelperError):
        CpuHelpers(RayConfig(), PLAN).call(work_of(fail), "do")


def test_a_node_from_which_nothing_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers = CpuHelpers(RayConfig(), PLAN)
    assert helpers.call(work_of(lambda: 1), "do") == 1
    monkeypatch.setattr(cpu_helpers, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(cpu_helpers, "_LOOK_EVERY_S", 0.2)
    started = time.monotonic()
    with pytest.raises(NoHelperError):
        helpers.call(work_of(lambda: time.sleep(120)), "do")
    assert time.monotonic() - started < 60
    monkeypatch.setattr(cpu_helpers, "_PATIENCE_S", 60.0)
    time.sleep(1)
    assert helpers.call(work_of(lambda: 2), "do") == 2, "and is asked again later"
