"""`stable-sam models`: the table fits a terminal, and what is downloaded is then used by the name of the base alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import cli
from stable_sam.bases import BASES
from stable_sam.bases.download import CHUNK_BYTES
from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError
from stable_sam.identity import model_identity
from tests.unit.file_server import FileServer, serving


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STABLE_SAM_MODELS", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server with a small file, which is that of vit_b and of its HQ-SAM."""
    with serving(b"x" * 1000) as running:
        file, hq_file = running.published(), running.published(name="hq.pth")
        monkeypatch.setitem(BASES, "vit_b", replace(BASES["vit_b"], file=file, hq_file=hq_file))
        yield running


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["models", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def listed() -> dict[str, dict[str, object]]:
    return {base["name"]: base for base in json.loads(run("--json"))}


def test_the_table_fits_a_terminal_and_names_every_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run().split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == ["base", *BASES]
    assert all(len(line) <= 80 and "…" not in line for line in lines)
    [vit_b] = [line.split() for line in lines if line.startswith("vit_b")]
    assert vit_b[-9:] == ["M", "375", "MB", "Apache-2.0", "1024", "no", "no", "379", "MB"]


def test_a_base_that_lacks_a_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pip install" not in run()
    monkeypatch.setattr("stable_sam.bases.base.find_spec", lambda module: None)
    assert (
        "vit_t, sam2.1_t, sam2.1_s, sam2.1_b+, sam2.1_l need one package more: pip install 'stable-sam[timm]'" in run()
    )


def test_a_downloaded_base_is_used_by_its_name(server: FileServer, folder: Path) -> None:
    config = RefinerConfig(model="vit_b")
    with pytest.raises(ConfigError, match="run: stable-sam models get vit_b "):
        model_identity(config)
    assert not listed()["vit_b"]["here"]

    assert run("get", "vit_b").startswith(f"{folder}/base.pth: 0 MB, Apache-2.0, SHA-256 ")

    assert model_identity(config).model_id == "vit_b"
    assert run("path", "vit_b") == f"{folder}/base.pth\n"
    assert listed()["vit_b"]["here"]


def test_the_hq_sam_of_a_base_is_another_file(server: FileServer, folder: Path) -> None:
    run("get", "vit_b", "--hq")
    assert run("path", "vit_b", "--hq") == f"{folder}/hq.pth\n"
    assert (listed()["vit_b"]["here"], listed()["vit_b"]["hq_here"]) == (False, True)


def test_a_plugin_is_used_once_it_lies_where_the_command_says(server: FileServer) -> None:
    run("get", "vit_b")
    Path(run("path", "vit_b", "--plugin").strip()).write_bytes(b"plugin")
    assert listed()["vit_b"]["plugin"]
    assert model_identity(RefinerConfig(model="vit_b")).model_id == "vit_b+plugin"


def test_progress_is_a_line_for_every_tenth_where_there_is_no_terminal(server: FileServer) -> None:
    server.content = bytes(5 * CHUNK_BYTES)
    BASES["vit_b"] = replace(BASES["vit_b"], file=server.published())
    result = CliRunner().invoke(cli.app, ["models", "get", "vit_b"], catch_exceptions=False)
    assert result.stderr.splitlines() == [f"base.pth: {tenth}0 %" for tenth in (2, 4, 6, 8, 10)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get", "sam3"], "^NAME: expected one of nano, vit_t, .*, got 'sam3'$"),
        (["get", "nano"], "^model: expected a base to download, got nano;"),
        (["get", "sam2.1_t", "--hq"], "^model: expected a base with a published HQ-SAM, got sam2.1_t;"),
        (["path", "tiny", "--plugin"], "^model: expected a base to download, got tiny;"),
    ],
)
def test_what_cannot_be_downloaded_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(*arguments)
