"""`benchmarks/gpu.py` on a CPU with the smallest model: that it runs, and ends in time with what it has."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_every_step_has_a_row(tmp_path, monkeypatch, capsys):
    import gpu

    threads = torch.get_num_threads(), cv2.getNumThreads()
    arguments = (
        "gpu.py --device cpu --cores 1 --models tiny --megapixels 0.05 --row-seconds 0 --no-compile --no-kernels "
        f"--minutes 10 --out {tmp_path / 'gpu.json'} --markdown {tmp_path / 'gpu.md'}"
    )
    monkeypatch.setattr(sys, "argv", arguments.split())
    try:
        gpu.main()
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    found = json.loads((tmp_path / "gpu.json").read_text())
    eager = [step.name for step in gpu.STEPS if not step.compiled]
    assert [row["step"] for row in found["rows"]] == [name for name in eager for _ in gpu.WORKLOADS]
    assert found["left_out"] == []
    for row in found["rows"]:
        assert row["images/s"] > 0
        assert row["against the first"] > 0
        assert row["least IoU"] > 0.9
    assert (tmp_path / "gpu.md").read_text() == capsys.readouterr().out


def test_a_run_that_is_cut_keeps_its_rows(tmp_path, monkeypatch, capsys):
    import gpu
    from gpu_report import Report

    left = tmp_path / "photographs"
    left.mkdir()
    options = argparse.Namespace(device="cpu", cores=1, at_once=2, out=tmp_path / "gpu.json", markdown=None)
    report = Report(options, "one")
    work = {"model": "tiny", "megapixels": 1.0, "prompts": 1, "K": 0, "against the first": None}
    report.add("rows", {"step": "one", "images/s": 2.0} | work, {"step": "two", "images/s": 3.0} | work)
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    gpu._end(report, str(left))
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert ended == [0]
    assert [row["against the first"] for row in found["rows"]] == [1.0, 1.5]
    assert "time was over" in found["left_out"][0]
    assert not left.exists()
    assert "| two |" in capsys.readouterr().out
