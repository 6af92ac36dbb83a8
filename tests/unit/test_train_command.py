"""What `stable-sam train` says to bad input: one line and exit code 2, before any step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import cli

BASE = "stages: [{size: 64, steps: 1, batch_images: 1}]\n"


def text(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


def good(folder: Path, kind: str) -> dict[str, str]:
    config = text(folder / "good.yaml", BASE if kind == "base" else "steps: 1\n")
    return {"data": str(folder), "out": str(folder / "out"), "config": config}


# name, base or plugin, options that replace the good ones, what the line must name
CASES: list[tuple[str, str, Callable[[Path], dict[str, str]], list[str]]] = [
    ("unknown key", "base", lambda t: {"config": text(t / "c.yaml", BASE + "stage: 1")}, ["c.yaml: stage: ", "got 1"]),
    ("plugin's key", "base", lambda t: {"config": text(t / "c.yaml", BASE + "hidden: 8")}, ["c.yaml: hidden: "]),
    ("no stages", "base", lambda t: {"config": text(t / "c.yaml", "objects: 2")}, ["c.yaml: stages: ", "required"]),
    ("stages", "plugin", lambda t: {"config": text(t / "c.yaml", BASE)}, ["c.yaml: stages: "]),
    ("no steps", "plugin", lambda t: {"steps": "0"}, ["--steps: steps: ", "got 0"]),
    ("bad size", "base", lambda t: {"config": text(t / "c.yaml", BASE.replace("64", "70"))}, ["stages.0.size", "70"]),
    ("missing config", "base", lambda t: {"config": "no.yaml"}, ["no.yaml", "cannot read"]),
    ("missing data", "base", lambda t: {"data": str(t / "nowhere")}, ["nowhere: ", "<set>/instances.json"]),
    ("missing data", "plugin", lambda t: {"data": str(t / "nowhere"), "model": "tiny"}, ["nowhere: ", "instances"]),
    ("unknown model", "plugin", lambda t: {"model": "sam3"}, ["model: ", "'sam3'"]),
    ("no checkpoint", "plugin", lambda t: {"model": "vit_b"}, ["run: stable-sam models get vit_b ", "checkpoint_uri"]),
    ("missing base", "plugin", lambda t: {"checkpoint": str(t / "no.safetensors")}, ["no.safetensors: "]),
]


@pytest.mark.parametrize(("kind", "options", "named"), [c[1:] for c in CASES], ids=[f"{c[1]}, {c[0]}" for c in CASES])
def test_bad_input_gets_one_line(kind, options, named, tmp_path, monkeypatch, capsys):
    chosen = good(tmp_path, kind) | options(tmp_path)
    arguments = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["stable-sam", "train", kind, *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    assert (end.value.code, shown.out) == (2, "")
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in named)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["base", "plugin"])
def test_data_and_out_are_asked_for(kind):
    result = CliRunner().invoke(cli.app, ["train", kind, "--out", "out"])
    assert result.exit_code == 2
    assert "Missing option '--data'" in result.output
