"""Reading and writing of weights as safetensors files with metadata."""

from __future__ import annotations

import json
import struct
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


def _with_sorted_metadata(data: bytes) -> bytes:
    """Sort the metadata in a file's header: safetensors orders the tensors, but not the metadata."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned to 8 bytes
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
