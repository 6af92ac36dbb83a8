"""Loading of the model that a config names: every key and shape must match, and a plugin loads only on its own base."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stable_sam.bases import BASES, Base
from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError, WeightsError
from stable_sam.identity import ModelIdentity, WeightFiles, identify, read_weights
from stable_sam.modeling.bases import family_of
from stable_sam.modeling.bases.base import BaseSam
from stable_sam.modeling.fast.compiled import CompiledPasses
from stable_sam.modeling.hq import HqBranch, attach_hq, build_hq
from stable_sam.modeling.plugin import PluginHost, StableSamPlugin, attach_plugin
from stable_sam.modeling.plugin_spec import PluginSpec
from stable_sam.modeling.weights import check_tensors, load_strictly, read_checkpoint, read_safetensors, some

HQ_PREFIX = "mask_decoder."
"""Prefix of the branch's tensors in the published HQ-SAM files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A frozen Sam in evaluation mode on its device, with what is attached to it."""

    base: Base
    sam: BaseSam
    host: PluginHost | None
    """Layer 2's host of the plugin, or None without a plugin; `host.enabled = False` gives plain SAM on the base."""
    hq: HqBranch | None = None
    """HQ-SAM's branch, or None when `hq_uri` names none; a model that has both starts with the plugin disabled."""
    identity: ModelIdentity
    device: torch.device
    compiled: CompiledPasses | None = None
    """Compiled encoder and fast decoder; None unless the config sets `compile`."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held during a pass: the plugin's host and HQ-SAM keep state of the pass, so two threads must take turns."""


def load_model(config: RefinerConfig) -> LoadedModel:
    """Build the model that `config` names and load its weights.

    Raises `ConfigError` for a device that is not there or a missing checkpoint, `WeightsError` for other keys or shapes
    or a plugin of another base, and `StorageError` for a file that cannot be read.
    """
    device = resolve_device(config.device)
    weights = read_weights(config)
    sam = family_of(config.model).load(config.model, weights.base, weights.base_name)
    sam.requires_grad_(False)
    hq = None if weights.hq is None else _read_hq(sam, weights, config.model)
    host = None
    if weights.plugin is not None:
        plugin = (
            _random_plugin(sam)
            if config.model == "tiny"
            else read_plugin(sam, weights.plugin, str(weights.plugin_name), weights.base_sha256, weights.base_name)
        )
        host = attach_plugin(sam, plugin)
    if hq is not None:
        attach_hq(sam, hq)
        if host is not None:
            host.enabled = False
    sam.requires_grad_(False)
    sam.eval().to(device)
    compiled = CompiledPasses(graphs=device.type == "cuda") if config.compile else None
    identity = identify(config, weights)
    return LoadedModel(
        base=BASES[config.model], sam=sam, host=host, hq=hq, identity=identity, device=device, compiled=compiled
    )


def resolve_device(name: str) -> torch.device:
    """Return the named device; `auto` is the GPU when there is one, else the CPU.

    Raises `ConfigError` when this machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device: expected auto, cpu or a GPU of this machine, got {name!r} ({reason})") from None
    return device


def read_plugin(sam: BaseSam, data: bytes, name: str, base_sha256: str, base_name: str) -> StableSamPlugin:
    """Build the plugin of a safetensors file without attaching it to `sam`, which must be the base that it was trained
    on.

    Raises `WeightsError`, which calls the file `name`, for a plugin of another base, other keys or other shapes.
    """
    tensors, metadata = read_safetensors(data, name)
    _check_base(metadata, base_sha256, base_name, name, "plugin")
    try:
        spec = PluginSpec.model_validate_json(metadata["plugin"])
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{name}: expected metadata plugin with the plugin's architecture, got {reason}") from None
    plugin = StableSamPlugin(sam.prompt_encoder.embed_dim, spec)
    load_strictly(plugin, tensors, name, "plugin")
    return plugin


def _check_base(metadata: Mapping[str, str], base_sha256: str, base_name: str, name: str, what: str) -> None:
    if metadata.get("base_sha256") != base_sha256:
        raise WeightsError(
            f"{name}: this {what} was trained on the base {metadata.get('base_sha256', 'unknown')[:16]}, "
            f"got the base {base_name} ({base_sha256[:16]})"
        )


def _read_hq(sam: BaseSam, weights: WeightFiles, model: str) -> HqBranch:
    """Read the branch from a published file, which holds all of HQ-SAM, or from our own, which holds it alone."""
    name, data = str(weights.hq_name), weights.hq or b""
    branch = build_hq(sam)
    if data[8:9] == b"{":  # a safetensors file starts with 8 bytes for its header's length, then the header in JSON
        tensors, metadata = read_safetensors(data, name)
        _check_base(metadata, weights.base_sha256, weights.base_name, name, "HQ-SAM branch")
    else:
        tensors = _branch_of_checkpoint(sam, branch, read_checkpoint(data, name), name, weights.base_name)
    load_strictly(branch, tensors, name, f"HQ-SAM for {model}")
    return branch


def _branch_of_checkpoint(
    sam: BaseSam, branch: HqBranch, state: Mapping[str, Tensor], name: str, base_name: str
) -> dict[str, Tensor]:
    """Return the branch's tensors, by the branch's names, of a whole HQ-SAM whose other tensors must be the base's."""
    prefixes = tuple(f"{HQ_PREFIX}{part}." for part, _ in branch.named_children())
    own = {key.removeprefix(HQ_PREFIX): value for key, value in state.items() if key.startswith(prefixes)}
    base = sam.state_dict()
    shared = {key: value for key, value in state.items() if not key.startswith(prefixes)}
    check_tensors(base, shared, name, f"HQ-SAM on {base_name}")
    # The counters of batch norms change no mask, and each training counts on.
    compared = {key: value for key, value in shared.items() if not key.endswith("num_batches_tracked")}
    other = [key for key, value in compared.items() if not torch.equal(value.float(), base[key])]
    if other:
        raise WeightsError(
            f"{name}: expected HQ-SAM on the base {base_name}, got another base: "
            f"{len(other)} of {len(base)} tensors differ ({some(other)})"
        )
    return own


def _random_plugin(sam: BaseSam) -> StableSamPlugin:
    """Build the plugin of `tiny` with random weights large enough that tests can see its effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        plugin = StableSamPlugin(sam.prompt_encoder.embed_dim)
        for parameter in plugin.parameters():
            nn.init.normal_(parameter, std=0.2)
    return plugin
