"""Shares of the stages add up, and what is not known is not made up."""

from __future__ import annotations

import pytest

from flows.commands.printed import print_profile
from stable_sam.runs.summary import RunSummary
from stable_sam.timing import STAGES, StageShares, summed

SHARES = StageShares(seconds=dict.fromkeys(STAGES, 0.0) | {"encode": 3.0, "jitter": 1.0}, images=10, prompts=40)
EMPTY = StageShares(seconds=dict.fromkeys(STAGES, 0.0), images=0, prompts=0)


def test_sums_over_shards() -> None:
    total = summed([{"encode": 1.0, "commit": 9.0}, {"encode": 2.0, "jitter": 1.0}], commit_seconds=0.5)
    assert total == dict.fromkeys(STAGES, 0.0) | {"encode": 3.0, "jitter": 1.0, "commit": 9.5}
    assert summed([{"encode": 1.0}, None]) is None
    assert summed([]) == dict.fromkeys(STAGES, 0.0)


def test_shares_and_milliseconds() -> None:
    header, *lines, total = SHARES.cells()
    assert header == ["stage", "seconds", "share", "ms an image", "ms a prompt"]
    assert [line[0] for line in lines] == list(STAGES)
    assert lines[STAGES.index("encode")] == ["encode", "3.00", "75.0%", "300.0", "75.0"]
    assert lines[STAGES.index("fetch")] == ["fetch", "0.00", "0.0%", "0.0", "0.0"]
    assert total == ["all", "4.00", "100.0%", "400.0", "100.0"]
    assert SHARES.line() == "Time: encode 75%, jitter 25%."


def test_a_run_that_refined_nothing_has_no_shares() -> None:
    assert EMPTY.cells()[-1] == ["all", "0.00", "-", "-", "-"]
    assert EMPTY.line() == ""


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"stages": SHARES}, "75.0%"),
        ({"stages": None}, "committed by a version that did not measure the stages"),
        ({"stages": SHARES, "up_to_date": True}, "Nothing was refined"),
    ],
)
def test_the_command_prints_them_where_there_are_any(
    capsys: pytest.CaptureFixture[str], facts: dict[str, object], said: str
) -> None:
    summary = RunSummary(table_uri="masks", run_id="r1", rows=(), **facts)  # type: ignore[arg-type]
    print_profile(summary, "trace.json")
    printed = capsys.readouterr().out
    assert said in printed
    assert printed.endswith("ui.perfetto.dev: trace.json\n")
    assert ("ms a prompt" in printed) == (said == "75.0%")
