"""The families of bases, one module each: how a base is built, loaded, and how it differs from SAM.

A family's module has a function `load`. `stable_sam.bases` says which base belongs to which family, and a family is
imported only when one of its bases is used, because it may need an extra package.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from stable_sam.bases import BASES
from stable_sam.errors import ConfigError
from stable_sam.modeling.bases.base import BaseSam


class Family(Protocol):
    """A module of this package."""

    def build(self, name: str) -> BaseSam:
        """Build the untrained base `name` in evaluation mode."""

    def load(self, name: str, data: bytes, file: str) -> BaseSam:
        """Build the base `name` with the weights `data`, which errors call `file`; raises `WeightsError`."""


def family_of(name: str) -> Family:
    """Return the family of the base `name` of `BASES`; raises `ConfigError` when it needs a package that is missing."""
    base = BASES[name]
    try:
        return cast(Family, import_module(f"{__name__}.{base.family}"))
    except ModuleNotFoundError as error:
        if base.extra is None:
            raise
        raise ConfigError(f"model: {name} needs {error.name}: pip install 'stable-sam[{base.extra}]'") from None


def build_base(name: str) -> BaseSam:
    """Build the untrained base `name` in evaluation mode.

    Raises `ConfigError` for a name that is not in `BASES`, and what `family_of` raises.
    """
    if name not in BASES:
        raise ConfigError(f"model: expected one of {', '.join(BASES)}, got {name!r}")
    return family_of(name).build(name)
