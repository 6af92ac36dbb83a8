"""The folder of downloaded bases: which files are there, and what to do when one is missing.

It is `models` in the user's cache folder, or the folder that the environment variable STABLE_SAM_MODELS names, which
all machines of a cluster may share. Published files keep their names there. A plugin is found by the base that it was
trained on: `plugin_<the first 16 digits of the SHA-256 of the base's file>.safetensors`.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

from stable_sam.bases.base import Base, PublishedFile
from stable_sam.errors import ConfigError
from stable_sam.wording import file_size

FOLDER_VARIABLE = "STABLE_SAM_MODELS"
PUBLISHED = "published"
"""Value of `RefinerConfig.hq_uri` for the published HQ-SAM of the base."""


def cache_folder() -> Path:
    """Return the folder of the downloaded bases, which may not exist yet."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser().absolute() if given else user_cache_path("stable-sam") / "models"


def cached_path(published: PublishedFile) -> Path:
    """Return where a published file belongs, whether it is there or not."""
    return cache_folder() / published.name


def cached_file(published: PublishedFile) -> Path | None:
    """Return the path of a published file, or None when it is not there whole.

    Only its size is compared: `download` puts no file there whose hash is another one.
    """
    path = cached_path(published)
    return path if path.is_file() and path.stat().st_size == published.size else None


def plugin_path(base: Base) -> Path | None:
    """Return where a plugin of this base belongs, whether it is there or not; None for a base that is not published."""
    return None if base.file is None else cache_folder() / f"plugin_{base.file.sha256[:16]}.safetensors"


def cached_plugin(base: Base) -> Path | None:
    """Return the path of this base's plugin, or None when there is none."""
    path = plugin_path(base)
    return path if path is not None and path.is_file() else None


def published_file(base: Base, *, hq: bool = False) -> PublishedFile:
    """Return the published weights of a base, or its published HQ-SAM; raises `ConfigError` when there is none."""
    published = base.hq_file if hq else base.file
    if published is None:
        what = "a base with a published HQ-SAM" if hq else "a base to download"
        raise ConfigError(f"model: expected {what}, got {base.name}; `stable-sam models` lists the bases")
    return published


def needed_file(base: Base, *, hq: bool = False) -> Path:
    """Return the path of the published weights of a base, or of its published HQ-SAM, on this machine.

    Raises `ConfigError` with the command that downloads the file when it is not here.
    """
    published = published_file(base, hq=hq)
    path = cached_file(published)
    if path is None:
        what, option, key = (f"HQ-SAM of {base.name}", " --hq", "hq_uri") if hq else (base.name, "", "checkpoint_uri")
        raise ConfigError(
            f"{'hq_uri' if hq else 'model'}: {what} is not on this machine; run: stable-sam models get "
            f"{base.name}{option} ({file_size(published.size)}, {base.licence}), or name a file as {key}"
        )
    return path
