"""Load the methods that are compared: one frozen base, on which the plugin or HQ-SAM's branch is switched on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from stable_sam.bases import BASES
from stable_sam.bases.cache import PUBLISHED
from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError, WeightsError
from stable_sam.identity import bundled_path, read_weights
from stable_sam.modeling.load import LoadedModel, load_model

BUNDLED_HQ = "nano_hq.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Which model the figures were measured with."""

    model: str
    input_size: int
    """Side of the model's square input in pixels."""
    weights_sha256: dict[str, str]
    """SHA-256 of the weights by what they are: base, plugin, hq."""
    parameters: dict[str, int]
    """Number of parameters of each method, the base included."""


def method_config(config: RefinerConfig, methods: Sequence[str]) -> RefinerConfig:
    """Return `config` with the weights that `methods` need, and no others.

    HQ-SAM without `hq_uri` takes the bundled branch on the bundled base, and the downloaded one on a downloaded base.
    Raises `ConfigError` when HQ-SAM has no weights.
    """
    changes: dict[str, object] = {}
    if "stable-sam" not in methods:
        changes["plugin"] = False
    if "hq-sam" not in methods:
        changes["hq_uri"] = None
    elif config.hq_uri is None:
        if config.checkpoint_uri is None and BASES[config.model].hq_file is not None:
            return config.model_copy(update=changes | {"hq_uri": PUBLISHED})
        if config.model != "nano" or config.checkpoint_uri is not None:
            raise ConfigError(f"methods: hq-sam needs the URI of its weights for {config.model} (--hq), got none")
        try:
            changes["hq_uri"] = bundled_path(BUNDLED_HQ)
        except WeightsError:
            raise ConfigError(
                "methods: hq-sam needs the URI of its weights (--hq), because none are bundled with nano"
            ) from None
    return config.model_copy(update=changes)


def load_methods(
    config: RefinerConfig, methods: Sequence[str], size: int | None = None
) -> tuple[LoadedModel, ModelFacts]:
    """Load one model that can answer as each of `methods`, and say which it is.

    size: side of nano's square input in pixels; None takes that of its weights. Raises what `load_model` raises, and
    `ConfigError` for missing weights of a method.
    """
    config = method_config(config, methods)
    files = read_weights(config)
    named = {"base": files.base, "plugin": files.plugin, "hq": files.hq}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in named.items() if data is not None}
    del files, named  # a large base must not be in memory twice
    model = load_model(config)
    if "stable-sam" in methods and model.host is None:
        raise ConfigError(f"methods: stable-sam needs a plugin, and model {config.model!r} was loaded without one")
    if size is not None:
        model.sam.set_input_side(size)
    facts = ModelFacts(
        model=config.model,
        input_size=model.sam.input_side,
        weights_sha256=hashes,
        parameters={method: count_method(model, method) for method in methods},
    )
    return model, facts


def select_method(model: LoadedModel, method: str) -> None:
    """Switch on what `method` adds to the base, and switch off what the other methods add."""
    if model.host is not None:
        model.host.enabled = method == "stable-sam"
    if model.hq is not None:
        model.hq.enabled = method == "hq-sam"


def count_method(model: LoadedModel, method: str) -> int:
    """Return the number of parameters of `method`: those of the base, and those that the method adds."""
    added = {"stable-sam": _count(model.host and model.host.plugin), "hq-sam": _count(model.hq)}
    return _count(model.sam) - sum(added.values()) + added.get(method, 0)


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())
