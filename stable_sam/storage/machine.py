"""Checks of what a command needs of its machine: folders that can be written, free space, and cores that are free."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from stable_sam.errors import StorageError

_MB = 1_000_000


def can_hold_files(folder: Path) -> bool:
    """Return whether a file can be created in `folder`; a missing folder is created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@cache
def scratch_folder() -> Path:
    """Return a temporary folder of this process, which is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="stable-sam-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def check_room(folder: Path, megabytes: int, cure: str) -> None:
    """Raise `StorageError` when less is free on the disk of `folder`. `cure` says in the message what to do then."""
    free = shutil.disk_usage(folder).free // _MB
    if free < megabytes:
        raise StorageError(f"{folder}: expected {megabytes} MB of free space, got {free} MB; {cure}")


def too_busy() -> str:
    """Return " (too busy?)" for a message about a time-out when more processes want to run than there are cores."""
    return " (too busy?)" if os.getloadavg()[0] > (os.cpu_count() or 1) else ""


def explained_os_error(error: OSError) -> str:
    """Return one line for an error of the system that no caller explains better, with the cure where it is known."""
    where = f"{error.filename}: " if error.filename is not None else ""
    cure = {
        errno.ENOSPC: "; free some space there, or set TMPDIR to a folder that has room",
        errno.ENOENT: "; if it is a temporary folder, set TMPDIR to one that can be written",
        errno.EROFS: "; if it is a temporary folder, set TMPDIR to one that can be written",
    }.get(error.errno or 0, "")
    return f"{where}{error.strerror or error}{cure}"
