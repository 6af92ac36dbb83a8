"""Reading, checking and writing of weights: safetensors files with metadata, and checkpoints of torch."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from stable_sam.errors import WeightsError


def save_weights(module: nn.Module, file: Path, metadata: dict[str, str], dtype: torch.dtype = torch.float16) -> Path:
    """Write the state of `module` as a safetensors file in `dtype`, whole or not at all, and return `file`.

    Equal weights and metadata give equal bytes, because the hash of its file identifies a model.
    """
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in module.state_dict().items()}
    partial = file.with_suffix(".partial")
    partial.write_bytes(_with_sorted_metadata(save(tensors, metadata)))
    return partial.replace(file)


def read_safetensors(data: bytes, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, as float32, and the metadata of a safetensors file whose bytes are `data`.

    Raises `WeightsError`, which calls the file `name`, when it cannot be read.
    """
    try:
        tensors = {k: v.float() for k, v in load(data).items()}
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
    except (SafetensorError, struct.error, ValueError) as error:
        raise WeightsError(f"{name}: expected a safetensors file, got {len(data)} bytes: {error}") from None
    return tensors, header.get("__metadata__", {})


def read_checkpoint(data: bytes, name: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint of torch (.pth, .pt), which errors call `name`; raises `WeightsError`.

    They are all of the checkpoint, as in SAM's files, or its one entry `model`, as in those of SAM 2.
    """
    try:
        state = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{name}: expected a SAM checkpoint (.pth), got {len(data)} bytes: {reason}") from None
    if isinstance(state, dict) and state.keys() == {"model"}:
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{name}: expected a SAM checkpoint (.pth) of named tensors, got {type(state).__name__}")
    return state


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], name: str, model: str) -> None:
    """Load `tensors` of the file `name` into `module`, the `model`; raises `WeightsError` as `check_tensors` does."""
    check_tensors(module.state_dict(), tensors, name, model)
    module.load_state_dict(dict(tensors), strict=True)


def check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], name: str, model: str) -> None:
    """Raise `WeightsError`, one line, unless `tensors` of the file `name` have the keys and shapes of `expected`."""
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
    problems = [f"{len(keys)} {kind} ({some(keys)})" for kind, keys in found.items() if keys]
    if problems:
        raise WeightsError(f"{name}: expected the weights of {model}, got {', '.join(problems)}")


def _with_sorted_metadata(data: bytes) -> bytes:
    """Sort the metadata in a file's header: safetensors orders the tensors, but not the metadata."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned to 8 bytes
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def some(keys: Iterable[str], limit: int = 3) -> str:
    """Return the first few of `keys` in one line."""
    ordered = sorted(keys)
    return ", ".join(ordered[:limit]) + (", ..." if len(ordered) > limit else "")
