"""A SAM 2.1 that builds and runs in milliseconds, with random weights large enough that every part counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stable_sam.modeling.bases import sam2
from stable_sam.modeling.bases.sam2 import NEW_IN_2_1, Sam2, build_sam2, published_name
from stable_sam.modeling.bases.sam2_encoder import HieraSize

SMALL = HieraSize(channels=8, blocks=(1, 2, 2, 1), global_blocks=(4,))
SIDE = 64


def build_small_sam2(seed: int = 0) -> Sam2:
    """Fresh weights would give nearly flat masks, and some of them are 0."""
    sam = build_sam2(SMALL, SIDE, channels=32, mlp_dim=64, heads=4)
    draw_weights(sam, seed)
    return sam


def use_small_sam2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the name of the smallest published size build such a base, with other weights."""
    monkeypatch.setattr(sam2, "build_sam2", lambda size: build_small_sam2(seed=9))


def draw_weights(sam: nn.Module, seed: int) -> None:
    """Matrices keep the variance of what they read, biases and embeddings get a tenth and all of it, norms stay 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sam.named_parameters():
            norm = "norm" in name or "output_upscaling.1" in name or "mask_downscaling" in name
            if value.dim() == 1 and name.endswith("weight") and norm:
                continue
            std = 0.1 if value.dim() == 1 else 1.0 if _is_embedding(name) else value[0].numel() ** -0.5
            value.copy_(torch.randn(value.shape, generator=generator) * std)


def _is_embedding(name: str) -> bool:
    return any(part in name for part in ("embed.", "_embed", "pos_embed", "token.weight", "tokens.weight"))


def write_published(sam: Sam2, file: Path, *, without: tuple[str, ...] = (), **more: torch.Tensor) -> Path:
    """As SAM 2.1 is published: with tensors of the memory, in a dictionary with the one entry `model`."""
    tensors = {published_name(key): value for key, value in sam.state_dict().items()}
    tensors |= {"memory_attention.norm.weight": torch.ones(2), "maskmem_tpos_enc": torch.ones(2)}
    tensors |= {"no_obj_embed_spatial": torch.ones(2), "obj_ptr_tpos_proj.weight": torch.ones(2)}
    assert all(any(key.startswith(new) for key in tensors) for new in NEW_IN_2_1)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(without or ("-",))} | more
    torch.save({"model": tensors}, file)
    return file
