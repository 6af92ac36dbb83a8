"""Environments with tools that this project does not depend on, in which they read its exports."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest


def python_with(folder: Path, *packages: str) -> Path:
    """Install packages in a new environment, which finds all others where this environment has them.

    Returns its Python. The test is skipped where they cannot be installed.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    place = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (place / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), *packages]
    if subprocess.run(command, check=False, capture_output=True, timeout=300).returncode:
        pytest.skip(f"{packages[0]} cannot be installed here")
    return folder / "bin" / "python"
