"""Run the commands of docs/tutorial.md and write what they print into the page.

    python -m benchmarks.tutorial                  # all of it, from a fresh folder out/tutorial; three minutes
    python -m benchmarks.tutorial --from-block 4   # continues at this block when a run was interrupted

The script runs the `sh` blocks in the order of the page, and writes the standard output of each into the `text` block
after it. At the end Chromium takes docs/tutorial.jpg: the coffee in the report, with its previous mask.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "tutorial.md"
SCREENSHOT = ROOT / "docs" / "tutorial.jpg"
FOLDER = "out/tutorial"
"""Folder that the tutorial's commands write to, relative to the folder that they run in."""
_BLOCK = re.compile(r"```sh\n(?P<commands>.*?)```(?:\n\n```text\n(?P<answer>.*?)```)?", re.DOTALL)


def blocks(document: str) -> list[tuple[str, str | None]]:
    """Return the commands of each `sh` block, and the text of the `text` block after it, or None where none follows."""
    return [(found["commands"], found["answer"]) for found in _BLOCK.finditer(document)]


def run(commands: str, folder: Path) -> str:
    """Return what bash prints when it runs `commands` in `folder`, with this environment's programs and this code."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"ended with {done.returncode}:\n{commands}")
    return done.stdout


def main() -> None:
    """Run the blocks in the repository's root and write what they print into the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--from-block", type=int, default=0)
    start = options.parse_args().from_block
    if start == 0:
        shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
    for number, (commands, before) in enumerate(blocks(DOCUMENT.read_text())):
        if number < start:
            continue
        print(f"block {number}\n{commands}", flush=True)
        answer = run(commands, ROOT).replace(f"{ROOT}/", "").strip("\n")
        if before is not None:
            shown = "\n".join(line.rstrip() for line in answer.splitlines())
            old = f"```sh\n{commands}```\n\n```text\n{before}```"
            new = f"```sh\n{commands}```\n\n```text\n{shown}\n```"
            DOCUMENT.write_text(DOCUMENT.read_text().replace(old, new))
    _take_screenshot()


def _take_screenshot() -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        page.goto((ROOT / FOLDER / "report.html").as_uri())
        page.get_by_role("searchbox", name="Find").fill("304")
        page.keyboard.press("Tab")
        page.locator(".card .open").first.click()
        page.keyboard.press("p")
        page.wait_for_timeout(500)
        taken = page.locator("#stage").screenshot()
        browser.close()
    Image.open(io.BytesIO(taken)).convert("RGB").save(SCREENSHOT, quality=85)


if __name__ == "__main__":
    main()
