"""The command line's frame: what a user meets before any work starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from flows import cli
from flows.commands.options import read_config
from stable_sam.bases import BASES
from stable_sam.calibration.calibrate import CalibrationConfig
from stable_sam.config import RayConfig
from stable_sam.errors import ConfigError, StorageError
from stable_sam.report.write import GALLERY_PROMPTS
from stable_sam.review.answers import MAX_REJECTED_FRACTION
from stable_sam.runs.compact import TARGET_BYTES
from stable_sam.runs.vacuum import RETENTION_HOURS
from stable_sam.table.query import MEMORY_LIMIT
from tasks.actors.sizing import plan_actors

COMMANDS = (
    "automations",
    "compact",
    "demo-images",
    "evaluate",
    "explain",
    "models",
    "query",
    "refine",
    "refine-image",
    "report",
    "train",
    "vacuum",
)


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.output


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = "pydantic", "torch", "ray", "prefect", "duckdb", "deltalake", "pyarrow", "cv2", "matplotlib"
    code = f"import sys, flows.cli; print([name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "[]"


def test_an_error_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["refine", "--annotations", "no.json", "--images", "none", "--output", "out", "--model", "tiny"]
    monkeypatch.setattr(sys, "argv", ["stable-sam", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.strip().splitlines() == [f"error: {Path('no.json').absolute()}: no such annotation file"]


@pytest.mark.parametrize(
    ("command", "option", "default"),
    [
        ("vacuum", "retention_hours", RETENTION_HOURS),
        ("compact", "target_mb", TARGET_BYTES / 2**20),
        ("import-review", "max_rejected", MAX_REJECTED_FRACTION),
        ("query", "memory_limit", MEMORY_LIMIT),
        ("report", "limit", GALLERY_PROMPTS),
        *(
            ("calibrate", name, getattr(CalibrationConfig(), name))
            for name in ("target_iou", "precision", "reject_precision", "confidence")
        ),
    ],
)
def test_the_default_of_an_option_is_that_of_the_library(command: str, option: str, default: float | str) -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    [given] = [parameter.default for parameter in commands[command].params if parameter.name == option]
    assert given == default


def test_a_profile_of_a_dry_run_is_refused() -> None:
    arguments = ["refine", "--annotations", "no.json", "--images", "none", "--output", "out", "--dry-run"]
    with pytest.raises(ConfigError, match="--profile: expected a run to profile, got --dry-run"):
        CliRunner().invoke(cli.app, [*arguments, "--profile", "trace.json"], catch_exceptions=False)


def test_model_option_replaces_the_file_s_model(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("refiner: {model: nano, jitter_count: 3}\n")
    settings = read_config(str(path), "tiny")
    assert (settings.refiner.model, settings.refiner.jitter_count) == ("tiny", 3)


def test_model_option_refuses_weights_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("refiner: {model: vit_b, checkpoint_uri: b.pth}\n")
    with pytest.raises(ConfigError, match="names weights for vit_b"):
        read_config(str(path), "vit_l")


@pytest.mark.parametrize("command", ["explain", "refine-image"])
def test_one_image_s_commands_refuse_it_too_unless_other_weights_are_given(command: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("refiner: {model: vit_b, checkpoint_uri: b.pth}\n")
    arguments = [command, "photo.png", "--box", "1", "1", "9", "9", "--out", "x.png", "--config", str(path)]
    with pytest.raises(ConfigError, match="--model vit_l: .* names weights for vit_b"):
        CliRunner().invoke(cli.app, [*arguments, "--model", "vit_l"], catch_exceptions=False)
    assert read_config(str(path), "vit_l", checkpoint="l.pth").refiner.checkpoint_uri == "l.pth"


def test_the_published_hq_sam_follows_the_model(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("refiner: {model: vit_b, hq_uri: published}\n")
    assert read_config(str(path), "vit_l").refiner.hq_uri == "published"


@pytest.mark.parametrize(
    "command", ["backfill", "calibrate", "evaluate", "explain", "refine", "refine-image", "report"]
)
def test_the_weights_are_named_alike_in_every_command_that_loads_a_model(command: str) -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    helps = {parameter.name: parameter.help for parameter in commands[command].params}
    assert ", ".join(BASES) in helps["model"]
    assert "Weights of the base" in helps["checkpoint"]
    assert "Weights of the plugin" in helps["plugin"]


def test_model_option_refuses_unknown_models() -> None:
    with pytest.raises(ConfigError, match="--model: refiner.model: .* got 'sam3'"):
        read_config(None, "sam3")


@pytest.mark.parametrize(
    ("settings", "cluster", "shards", "expected"),
    [
        (RayConfig(), {"CPU": 2}, 100, (2, 0)),
        (RayConfig(), {"CPU": 16}, 100, (16, 0)),
        (RayConfig(num_cpus=4), {"CPU": 18}, 100, (4, 0)),
        (RayConfig(num_cpus=0), {"CPU": 4}, 100, (4, 0)),
        (RayConfig(), {"CPU": 16}, 3, (3, 0)),
        (RayConfig(), {"CPU": 16, "GPU": 2}, 100, (2, 1)),
        (RayConfig(num_gpus=0.5), {"CPU": 16, "GPU": 2}, 100, (4, 0.5)),
        (RayConfig(actors=8), {"CPU": 4}, 100, (4, 0)),
        (RayConfig(actors=2, num_cpus=4), {"CPU": 16, "GPU": 1}, 100, (2, 0)),
    ],
)
def test_actors_fit_the_cluster(
    settings: RayConfig, cluster: dict[str, float], shards: int, expected: tuple[int, float]
) -> None:
    plan = plan_actors(settings, cluster, shards)
    assert (plan.actors, plan.num_gpus) == expected


@pytest.mark.parametrize("settings", [RayConfig(num_cpus=4), RayConfig(num_gpus=1)])
def test_an_actor_that_cannot_fit_is_refused(settings: RayConfig) -> None:
    with pytest.raises(ConfigError, match="each actor asks for"):
        plan_actors(settings, {"CPU": 2}, 10)


@pytest.mark.parametrize("option", ["--annotations", "--where", "SELECT"])
def test_an_argument_in_another_encoding_is_refused_in_one_line(option: str) -> None:
    command = [sys.executable, "-c", "from flows.cli import main; main()", "query", option.encode() + b" k\xf6tt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {option} k\\udcf6tt: expected an argument in UTF-8, got one in another encoding\n"


@pytest.mark.parametrize("command", [["query", "SELECT 1"], ["report"]])
def test_nothing_is_written_into_a_table(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "table" / "rows.csv"
    with pytest.raises(ConfigError, match="rows.csv: expected a place outside of the table's folder"):
        CliRunner().invoke(
            cli.app, [*command, "--table", str(tmp_path / "table"), "--out", str(out)], catch_exceptions=False
        )


def test_a_file_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("n")
    with pytest.raises(StorageError, match="rows.csv: expected the folder of a masks table, got a file"):
        CliRunner().invoke(
            cli.app, ["query", "--table", str(tmp_path / "rows.csv"), "SELECT 1"], catch_exceptions=False
        )
