"""What the project knows of a base model without loading it: its size, its licence and where its weights are from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from stable_sam.errors import ConfigError

Fit = Literal["pad", "stretch"]
"""How an image fits into the model's square input: `pad` keeps its proportions and pads it below or to the right, as
SAM does; `stretch` fills the square, as SAM 2 does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A file of weights as its authors publish it."""

    name: str
    """Name of the file, also in the cache folder."""
    url: str
    size: int
    """Size in bytes."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base model, which `RefinerConfig.model` names."""

    name: str
    title: str
    """Name of the model in its paper."""
    family: str
    """Module of `stable_sam.modeling.bases` that builds and loads it."""
    parameters: int
    """Number of parameters that segment an image: the image encoder's, prompt encoder's and mask decoder's."""
    input_side: int
    """Side of the square input in pixels; a cell of the image embedding is 16 pixels wide."""
    fit: Fit = "pad"
    licence: str
    """Licence of the weights, as an SPDX identifier."""
    file: PublishedFile | None = None
    """The published weights; None for a base that comes with this package."""
    hq_file: PublishedFile | None = None
    """The published HQ-SAM of this base, if there is one."""
    extra: str | None = None
    """Extra of this package that installs what the base needs, named as the module that it brings; None when it needs
    nothing more."""

    @property
    def lacks(self) -> str | None:
        """The command that installs the package that the base needs, or None when it is there. Nothing is imported."""
        return None if self.extra is None or find_spec(self.extra) else f"pip install 'stable-sam[{self.extra}]'"

    def check_extra(self) -> None:
        """Raise `ConfigError` when the package that the base needs is not installed."""
        if self.lacks is not None:
            raise ConfigError(f"model: {self.name} needs {self.extra}, which is not installed; run: {self.lacks}")
