"""Loading of the model that a config names: every key and shape must match, and a plugin loads only on its own base."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError, WeightsError
from stable_sam.identity import ModelIdentity, WeightFiles, identify, read_weights
from stable_sam.modeling.build import NANO_SIZE, build_model, build_nano, set_input_size
from stable_sam.modeling.fast.compiled import CompiledPasses
from stable_sam.modeling.hq import HqBranch, attach_hq, build_hq
from stable_sam.modeling.plugin import PluginHost, StableSamPlugin, attach_plugin
from stable_sam.modeling.plugin_spec import PluginSpec
from stable_sam.modeling.weights import read_safetensors

HQ_PREFIX = "mask_decoder."
"""Prefix of the branch's tensors in the published HQ-SAM files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A frozen Sam in evaluation mode on its device, with what is attached to it."""

    sam: Sam
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
    sam = _load_nano(weights) if config.model == "nano" else build_model(config.model)
    if config.model not in ("nano", "tiny"):
        _load_tensors(sam, _read_checkpoint(weights.base, weights.base_name), weights.base_name, config.model)
    sam.requires_grad_(False)
    hq = None if weights.hq is None else _read_hq(sam, weights, config.model)
    host = None
    if weights.plugin is not None:
        plugin = _random_plugin(sam) if config.model == "tiny" else _read_plugin(sam, weights)
        host = attach_plugin(sam, plugin)
    if hq is not None:
        attach_hq(sam, hq)
        if host is not None:
            host.enabled = False
    sam.requires_grad_(False)
    sam.eval().to(device)
    compiled = CompiledPasses(graphs=device.type == "cuda") if config.compile else None
    identity = identify(config, weights)
    return LoadedModel(sam=sam, host=host, hq=hq, identity=identity, device=device, compiled=compiled)


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


def _load_nano(weights: WeightFiles) -> Sam:
    """Load `nano` as the metadata of its weights file describe it; a file without metadata is of version 0.2.0."""
    tensors, metadata = read_safetensors(weights.base, weights.base_name)
    sam = build_nano(fine=metadata.get("fine") == "1")
    try:
        set_input_size(sam, int(metadata.get("size", NANO_SIZE)))
        sam.drawn = float(metadata.get("drawn", 1))
    except (ValueError, ConfigError) as error:
        raise WeightsError(f"{weights.base_name}: metadata: {error}") from None
    _load_tensors(sam, tensors, weights.base_name, "nano")
    return sam


def _read_checkpoint(data: bytes, name: str) -> dict[str, Tensor]:
    try:
        state = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{name}: expected a SAM checkpoint (.pth), got {len(data)} bytes: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{name}: expected a SAM checkpoint (.pth) of named tensors, got {type(state).__name__}")
    return state


def _read_plugin(sam: Sam, weights: WeightFiles) -> StableSamPlugin:
    name = str(weights.plugin_name)
    tensors, metadata = read_safetensors(weights.plugin or b"", name)
    _check_base(metadata, weights, name, "plugin")
    try:
        spec = PluginSpec.model_validate_json(metadata["plugin"])
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{name}: expected metadata plugin with the plugin's architecture, got {reason}") from None
    plugin = StableSamPlugin(sam.prompt_encoder.embed_dim, spec)
    _load_tensors(plugin, tensors, name, "plugin")
    return plugin


def _check_base(metadata: Mapping[str, str], weights: WeightFiles, name: str, what: str) -> None:
    if metadata.get("base_sha256") != weights.base_sha256:
        raise WeightsError(
            f"{name}: this {what} was trained on the base {metadata.get('base_sha256', 'unknown')[:16]}, "
            f"got the base {weights.base_name} ({weights.base_sha256[:16]})"
        )


def _read_hq(sam: Sam, weights: WeightFiles, model: str) -> HqBranch:
    """Read the branch from a published file, which holds all of HQ-SAM, or from our own, which holds it alone."""
    name, data = str(weights.hq_name), weights.hq or b""
    branch = build_hq(sam)
    if data[8:9] == b"{":  # a safetensors file starts with 8 bytes for its header's length, then the header in JSON
        tensors, metadata = read_safetensors(data, name)
        _check_base(metadata, weights, name, "HQ-SAM branch")
    else:
        tensors = _branch_of_checkpoint(sam, branch, _read_checkpoint(data, name), name, weights.base_name)
    _load_tensors(branch, tensors, name, f"HQ-SAM for {model}")
    return branch


def _branch_of_checkpoint(
    sam: Sam, branch: HqBranch, state: Mapping[str, Tensor], name: str, base_name: str
) -> dict[str, Tensor]:
    """Return the branch's tensors, by the branch's names, of a whole HQ-SAM whose other tensors must be the base's."""
    prefixes = tuple(f"{HQ_PREFIX}{part}." for part, _ in branch.named_children())
    own = {key.removeprefix(HQ_PREFIX): value for key, value in state.items() if key.startswith(prefixes)}
    base = sam.state_dict()
    shared = {key: value for key, value in state.items() if not key.startswith(prefixes)}
    _check_tensors(base, shared, name, f"HQ-SAM on {base_name}")
    other = [key for key, value in shared.items() if not torch.equal(value.float(), base[key])]
    if other:
        raise WeightsError(
            f"{name}: expected HQ-SAM on the base {base_name}, got another base: "
            f"{len(other)} of {len(base)} tensors differ ({_some(other)})"
        )
    return own


def _random_plugin(sam: Sam) -> StableSamPlugin:
    """Build the plugin of `tiny` with random weights large enough that tests can see its effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        plugin = StableSamPlugin(sam.prompt_encoder.embed_dim)
        for parameter in plugin.parameters():
            nn.init.normal_(parameter, std=0.2)
    return plugin


def _load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], name: str, model: str) -> None:
    """Load `tensors` into `module`; missing, unknown and mis-shaped keys give one line of error."""
    _check_tensors(module.state_dict(), tensors, name, model)
    module.load_state_dict(dict(tensors), strict=True)


def _check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], name: str, model: str) -> None:
    shapes = [
        f"{key} {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in tensors.items()
        if key in expected and value.shape != expected[key].shape
    ]
    found = {
        "missing": expected.keys() - tensors.keys(),
        "unknown": tensors.keys() - expected.keys(),
        "mis-shaped": shapes,
    }
    problems = [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in found.items() if keys]
    if problems:
        raise WeightsError(f"{name}: expected the weights of {model}, got {', '.join(problems)}")


def _some(keys: Iterable[str], limit: int = 3) -> str:
    ordered = sorted(keys)
    return ", ".join(ordered[:limit]) + (", ..." if len(ordered) > limit else "")
