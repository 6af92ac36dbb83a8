"""docs/tutorial.md does what it says: its commands are run as they stand there."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tutorial import DOCUMENT, FOLDER, ROOT, blocks, run
from flows import cli
from stable_sam.table.query import query

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_local")


def printed(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a `stable-sam` command prints; in this process, for Ray to start once only."""
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert not ended.value.code, f"{command}\n{shown.err}"
    return shown.out


def loosely(answer: str) -> set[str]:
    """The words of an answer: columns and sentences, without figures, ids and what stands in the rows of a query."""
    lines = [line for line in answer.splitlines() if not line.startswith("│")]
    return set(re.findall(r"[a-z_]{3,}", re.sub(r"\S*[0-9/]\S*", "", "\n".join(lines))))


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    steps = blocks(DOCUMENT.read_text())
    for commands, answer in steps:
        if not commands.startswith("stable-sam "):
            run(commands, tmp_path)
            continue
        lines = re.split(r"\n(?=stable-sam )", commands.replace("\\\n", " "))
        given = "".join(printed(line, monkeypatch, capsys) for line in lines)
        if answer is not None:
            assert loosely(answer) <= loosely(given)
    assert len(steps) > 10
    table = f"{FOLDER}/table"

    def rows(sql: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = query(str(tmp_path / table), sql).to_pylist()
        return found

    # What people said outlived a moved box, --refresh all and --refresh model.
    reviewed = {row["prompt_id"]: row for row in rows("SELECT * FROM masks WHERE status = 'reviewed'")}
    painted, looked_at = ["201", "202", "304"], [str(coin) for coin in range(501, 512)]
    assert {name: row["verdict"] for name, row in reviewed.items()} == {
        **dict.fromkeys(painted, "corrected"),
        **dict.fromkeys(looked_at, "confirmed"),
        **dict.fromkeys(["207", "308"], "rejected"),
    }
    assert reviewed["304"]["area"] == pytest.approx(12_700, abs=100)
    assert reviewed["304"]["box_xyxy"] == [195, 88, 382, 202]
    assert rows("SELECT box_xyxy FROM masks WHERE prompt_id = '301'") == [{"box_xyxy": [165, 10, 425, 315]}]
    # The last night is routed by what the reviews taught, all but the reviewed rows.
    (last,) = rows("SELECT run_id, config_hash, rows FROM runs ORDER BY revision DESC LIMIT 1")
    assert last["rows"] == len(rows("SELECT * FROM masks WHERE status <> 'reviewed'")) == 50
    assert rows("SELECT count(DISTINCT config_hash) AS n FROM runs WHERE model_id LIKE 'nano%'") == [{"n": 2}]
    changed = rows("SELECT max(abs(quality - quality_before)) AS most FROM changes")
    assert 0.001 < changed[0]["most"] < 0.5
    assert rows("SELECT count(*) AS n, count(DISTINCT prompt_id) AS prompts FROM masks") == [{"n": 66, "prompts": 66}]
    assert (tmp_path / FOLDER / "report.html").stat().st_size > 100_000
