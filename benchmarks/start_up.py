"""Measure how long the commands take: `--help`, `refine-image` to its mask, `refine` to its first row and its end.

    python benchmarks/start_up.py --rounds 5 --out start_up.json --markdown start_up.md

Whole processes are timed from their start. Every round runs each command once, and beside them Python alone and an
import of torch and segment_anything, which no command can avoid. The first round only fills the system's file cache and
is not counted. CPU time is that of all threads, and is steadier on a busy machine. `refine` runs over one image with a
temporary Prefect server and a local Ray (`--no-refine` leaves it out); its CPU time is unknown, because not all of
Ray's processes are waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

WARM_UP = 1
"""Rounds not counted."""
COMMAND = str(Path(sys.executable).with_name("stable-sam"))
HEAVY = (
    "pydantic",
    "torch",
    "torchvision",
    "ray",
    "prefect",
    "pyarrow",
    "duckdb",
    "cv2",
    "numpy",
    "matplotlib",
    "sklearn",
)
"""Packages that `--help` must not import."""


def main() -> None:
    """Measure, print a table and write JSON and Markdown."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        seconds = _measure(Path(name), options)
    imported = subprocess.run(
        [sys.executable, "-c", f"import sys, flows.cli; print(*[name for name in {HEAVY} if name in sys.modules])"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    result = {
        "rounds": options.rounds,
        "load_average": os.getloadavg()[0],
        "imported_by_help": imported,
        "seconds": {what: _spread([clock for clock, _ in values]) for what, values in seconds.items()},
        "cpu_seconds": {what: _spread([cpu for _, cpu in values]) for what, values in seconds.items()},
    }
    text = _markdown(result)
    print(text)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")


def _measure(folder: Path, options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every round, by the clock and of CPU."""
    (folder / "images").mkdir()
    photo = folder / "images" / "chelsea.jpg"
    Image.fromarray(data.chelsea()).save(photo)
    image = {"id": 1, "file_name": photo.name, "height": 300, "width": 451}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 5, 420, 295]}
    weak = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    (folder / "weak.json").write_text(json.dumps(weak))
    mask = folder / "mask.png"
    commands = {
        "python": [sys.executable, "-c", ""],
        "import torch, segment_anything": [sys.executable, "-c", "import torch, segment_anything"],
        "stable-sam --help": [COMMAND, "--help"],
        "stable-sam refine-image": [
            COMMAND, "refine-image", str(photo), "--box", "20", "5", "440", "300", "--out", str(mask)
        ],
    }  # fmt: skip
    seconds: dict[str, list[tuple[float, float]]] = {}
    for number in range(WARM_UP + options.rounds):
        for what, command in commands.items():
            started, cpu = time.perf_counter(), _cpu_of_children()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.setdefault(what, []).append((time.perf_counter() - started, _cpu_of_children() - cpu))
        if not options.no_refine:
            first, whole = _refine(folder, folder / f"table{number}")
            seconds.setdefault("stable-sam refine, first row", []).append((first, float("nan")))
            seconds.setdefault("stable-sam refine, whole", []).append((whole, float("nan")))
    return {what: values[WARM_UP:] for what, values in seconds.items()}


def _refine(folder: Path, table: Path) -> tuple[float, float]:
    """Seconds to the first committed row, and to the end of the process."""
    started, first = time.perf_counter(), None
    paths = {"annotations": folder / "weak.json", "images": folder / "images", "output": table}
    with subprocess.Popen(
        [COMMAND, "refine", *(f"--{name}={path}" for name, path in paths.items())],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while process.poll() is None:
            if first is None and any(table.glob("data/*/*.parquet")):
                first = time.perf_counter() - started
            time.sleep(0.02)
    if process.returncode or first is None:
        sys.exit(f"stable-sam refine ended with {process.returncode}")
    return first, time.perf_counter() - started


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "quarter": low, "three_quarters": high}


def _markdown(result: dict[str, Any]) -> str:
    heavy = ", ".join(result["imported_by_help"]) or "none"
    lines = [
        f"Medians of {result['rounds']} rounds, in brackets the middle half of them; load "
        f"{result['load_average']:.1f}. Heavy packages that `--help` imports: {heavy}.",
        "",
        "| process | s | CPU s |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {what} | {_cell(result['seconds'][what])} | {_cell(result['cpu_seconds'][what])} |"
        for what in result["seconds"]
    ]
    return "\n".join(lines) + "\n"


def _cell(spread: dict[str, float]) -> str:
    if np.isnan(spread["median"]):
        return ""
    return f"{spread['median']:.2f} [{spread['quarter']:.2f}, {spread['three_quarters']:.2f}]"


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-refine", action="store_true", help="the first four only")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
