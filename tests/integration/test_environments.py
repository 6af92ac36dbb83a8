"""The real command in other people's environments: local work needs nothing but itself, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stable_sam.table.query import query
from tests.integration.marked_processes import left_after, new_mark, processes, take_interrupts

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No Prefect server, no profile of the user, and a mark by which the processes of the command are known."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_"))}
    return plain | {"PREFECT_HOME": str(tmp_path / "prefect")} | new_mark()


@pytest.fixture
def refine(annotations: Path, tmp_path: Path) -> list[str]:
    """The command, over three pictures."""
    arguments = [f"--annotations={annotations}", f"--images={tmp_path / 'images'}", f"--output={tmp_path / 'table'}"]
    return [*COMMAND, "refine", "--model=tiny", *arguments]


def listening(pids: set[int]) -> set[str]:
    """Addresses, as /proc/net/tcp has them, on which one of the processes listens."""
    sockets = set()
    for pid in pids:
        try:
            links = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        sockets |= {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in sockets:
                found.add(local.partition(":")[0])
    return found


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@LINUX
def test_without_a_home_behind_a_proxy_and_in_a_long_temporary_folder_it_works_on_loopback_only(
    refine: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    del environment["PREFECT_HOME"]
    environment |= {"HOME": "/proc/none", "http_proxy": NOWHERE, "https_proxy": NOWHERE, "TMPDIR": str(long)}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    addresses: set[str] = set()
    with subprocess.Popen(refine, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        while run.poll() is None:
            addresses |= listening({pid for pid, _ in processes(environment)})
            time.sleep(1)
        assert run.stdout is not None
        said = run.stdout.read()
    assert run.returncode == 0, said
    assert addresses
    assert addresses <= LOOPBACK
    assert query(str(tmp_path / "table"), "SELECT count(*) AS n FROM masks WHERE status = 'ok'").to_pylist() == [
        {"n": 9}
    ]
    assert wait_until_gone(environment) == []


@LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_ended_leaves_no_process_and_says_that_it_can_be_run_again(
    number: signal.Signals, refine: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    with (tmp_path / "said.txt").open("w") as said, subprocess.Popen(
        refine, env=environment, stdout=said, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=take_interrupts,
    ) as run:  # fmt: skip
        while not any(line.startswith("ray::ShardActor") for _, line in processes(environment)):
            assert run.poll() is None, "it ended before an actor was there"
            time.sleep(0.1)
        run.send_signal(number)
        run.wait(120)
        assert wait_until_gone(environment) == []
    lines = (tmp_path / "said.txt").read_text().splitlines()
    assert run.returncode == (-9 if number == signal.SIGKILL else 130), lines
    if number != signal.SIGKILL:
        assert lines[-1].endswith("run the same command again and it continues")
    assert not any("Traceback" in line for line in lines)


PARTS = ("prefect", "temporary_server", "gcs_server", "raylet/raylet", "ray::ShardActor", "tasks.actors.child")
"""Marks of what would stay, or hold the model, for good; Ray's agents notice the end of the others after up to 90 s."""


def wait_until_gone(environment: dict[str, str]) -> list[str]:
    """The command lines of the command's parts that are still there after a while."""
    return left_after(environment, 90, lambda line: any(mark in line for mark in PARTS))


@pytest.mark.parametrize("kind", [".env", "home of Prefect", "temporary folder", "full disk"])
def test_what_is_missing_is_named_in_one_line(
    kind: str, refine: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    words = {
        ".env": ("(PREFECT_API_URL, set in", str(here / ".env")),
        "home of Prefect": ("PREFECT_HOME: expected a folder that can be written, got /proc/none",),
        "temporary folder": ("RAY_TMPDIR", "/proc/none"),
        "full disk": ("MB of free space, got 0 MB", "PREFECT_HOME"),
    }[kind]
    if kind == ".env":
        (here / ".env").write_text(f"PREFECT_API_URL={NOWHERE}/api\n")
    if kind == "home of Prefect":
        environment["PREFECT_HOME"] = "/proc/none"
    if kind == "temporary folder":
        refine = [sys.executable, "-c", NO_TEMPORARY_FOLDER]
    if kind == "full disk":
        full = "import shutil; shutil.disk_usage = lambda folder: shutil._ntuple_diskusage(1, 1, 0); "
        refine = [sys.executable, "-c", full + COMMAND[2], *refine[3:]]
    done = subprocess.run(refine, cwd=here, env=environment, capture_output=True, text=True, timeout=300)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert "Traceback" not in done.stderr
    assert "too busy" not in done.stderr


@pytest.mark.parametrize("place", ["the environment", ".env"])
def test_a_server_that_does_not_run_here_is_told_before_prefect_is_imported(
    place: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """Importing Prefect takes most of the time until the message."""
    (tmp_path / ".env").write_text(f"PREFECT_API_URL={NOWHERE}/api\n" if place == ".env" else "")
    given = {"PREFECT_API_URL": f"{NOWHERE}/api"} if place != ".env" else {}
    done = subprocess.run(
        [sys.executable, "-c", START_PREFECT], cwd=tmp_path, env=environment | given, capture_output=True, text=True
    )
    assert f"(PREFECT_API_URL, set in {tmp_path / place if place == '.env' else place})" in done.stdout, done.stderr
    assert done.stdout.endswith("imported: False\n")


START_PREFECT = """
import sys
from flows.prefect_setup import start_prefect
from stable_sam.errors import StableSamError
try:
    start_prefect()
except StableSamError as error:
    print(error)
print("imported:", "prefect" in sys.modules)
"""
NO_TEMPORARY_FOLDER = """
import os, sys
from unittest import mock
import stable_sam.storage.machine, tasks.actors.session as session
from stable_sam.errors import StableSamError
os.environ["RAY_TMPDIR"] = "/proc/none"
with mock.patch.object(session, "can_hold_files", lambda folder: False):
    try:
        session._temp_folder()
    except StableSamError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
"""


def test_nothing_stands_behind_an_error_of_the_flow(
    refine: list[str], environment: dict[str, str], annotations: Path
) -> None:
    document = json.loads(annotations.read_text())
    document["annotations"][1]["id"] = document["annotations"][0]["id"]
    annotations.write_text(json.dumps(document))
    done = subprocess.run(refine, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: "), "DuckDB's objects were still there"


def test_a_locale_without_the_letters_of_a_category_gets_them_replaced(environment: dict[str, str]) -> None:
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "import flows.cli as cli; cli._use_utf8(); import sys; print('k\\xf6tt', sys.getfilesystemencoding())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert re.fullmatch(rb"k\?tt utf-8\s*", done.stdout)
