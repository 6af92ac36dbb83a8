"""Measure what a night without changes costs.

    python benchmarks/night_without_changes.py --prompts 1000000 --images 100000 [--folder DIR] [--command]

The command publishes a table of so many rows (without masks) and plans again: once with unchanged files, and once with
an annotation file that was written again with the same content, so that it has to be read and compared. It prints the
seconds of each, and checks that nothing was written. --command adds the seconds of a whole `stable-sam refine` with a
temporary Prefect server.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from planning import publish_without_masks, write_images, write_source

from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.runs.plan import RunPlan, plan_request
from stable_sam.runs.request import RunRequest
from stable_sam.storage.files import list_files


def main() -> None:
    """Publish the first night, then time those without changes."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="nights-") as name:
        folder = Path(name)
        write_images(folder / "images", options.images)
        write_source(folder, "parquet", options.prompts, options.images, changed=0)
        first = plan(folder)
        assert first.manifest is not None
        publish_without_masks(first.manifest)
        files = list_files(str(folder / "table"))
        print(f"{options.prompts} prompts on {options.images} images are in the table")
        for what in ("no file changed", "annotation file written again"):
            started, cpu = time.monotonic(), time.process_time()
            again = plan(folder)
            print(f"{what}: {time.monotonic() - started:.1f} s ({time.process_time() - cpu:.1f} s of CPU)", flush=True)
            assert again.changes.unchanged == options.prompts, again.changes
            assert again.manifest is None
            assert list_files(str(folder / "table")) == files, "something was written"
            (folder / "weak.parquet").touch()
        if options.command:
            os.utime(folder / "weak.parquet", ns=(0, 0))
            started = time.monotonic()
            subprocess.run(command(folder), check=True)
            print(f"stable-sam refine: {time.monotonic() - started:.1f} s")


def plan(folder: Path) -> RunPlan:
    """One night."""
    return plan_request(
        RunRequest(
            annotations_uri=str(folder / "weak.parquet"),
            images_uri=str(folder / "images"),
            output_uri=str(folder / "table"),
            config=RunConfig(refiner=RefinerConfig(model="tiny")),
        )
    )


def command(folder: Path) -> list[str]:
    """The same night from the command line."""
    uris = {"annotations": "weak.parquet", "images": "images", "output": "table"}
    options = [f"--{name}={folder / path}" for name, path in uris.items()]
    return [str(Path(sys.executable).with_name("stable-sam")), "refine", "--model=tiny", *options]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary files go")
    parser.add_argument("--command", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
