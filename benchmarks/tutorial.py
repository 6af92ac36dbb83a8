"""Do what docs/tutorial.md says, and write what its commands print into it.

    python -m benchmarks.tutorial

Each block of `sh` is run in the order of the document, from a fresh folder out/tutorial; the block of `text` behind it
gets what came on standard output. Two minutes on two cores.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "tutorial.md"
FOLDER = "out/tutorial"
"""Where the tutorial's commands write, below the folder that they are run in."""
_BLOCK = re.compile(r"```sh\n(?P<commands>.*?)```(?:\n\n```text\n(?P<answer>.*?)```)?", re.DOTALL)


def blocks(document: str) -> Iterator[tuple[str, str | None]]:
    """Commands, and the answer that stands behind them, if any."""
    for found in _BLOCK.finditer(document):
        yield found["commands"], found["answer"]


def run(commands: str, folder: Path) -> str:
    """What bash prints when it runs `commands` in `folder`, with this environment's programs and this code."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"ended with {done.returncode}:\n{commands}")
    return done.stdout


def main() -> None:
    """Run all blocks in the repository's root and write the answers into the document."""
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
    text = DOCUMENT.read_text()
    for found in list(_BLOCK.finditer(text)):
        print(found["commands"])
        answer = run(found["commands"], ROOT)
        print(answer)
        if found["answer"] is not None:
            lines = [line.rstrip() for line in answer.replace(f"{ROOT}/", "").strip("\n").splitlines()]
            block = found[0].replace(f"```text\n{found['answer']}```", "```text\n" + "\n".join(lines) + "\n```")
            text = text.replace(found[0], block)
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
