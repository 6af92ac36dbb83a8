"""The image encoder of SAM 2.1: timm's Hiera and a feature pyramid that keeps the finer stages as fine features."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch.nn.functional as F
from timm.models.hieradet_sam2 import HieraDet
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class HieraSize:
    """What tells the four published trunks apart; the defaults are those of the two smaller ones."""

    channels: int = 96
    """Channels of the first of the four stages; each further stage has twice as many."""
    heads: int = 1
    """Attention heads of the first stage; each further stage has twice as many."""
    blocks: tuple[int, int, int, int]
    """Blocks of each stage."""
    global_blocks: tuple[int, ...]
    """Indices of the blocks whose cells attend to all cells; the others attend within windows."""
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    """Side of the windows of each stage, in cells."""
    background: int = 7
    """Side of the grid of positional embeddings that is stretched over the image."""


class HieraEncoder(nn.Module):
    """Trunk and neck, with the module names of the published files."""

    def __init__(self, size: HieraSize, side: int, out_channels: int) -> None:
        """`side` is the side S of the square input in pixels, a multiple of 32; `out_channels` is C, the width of the
        decoder."""
        super().__init__()
        self.img_size = side
        """Side S of the square input in pixels; `segment_anything.Sam` reads it by this name."""
        self.trunk = HieraDet(
            num_classes=0, embed_dim=size.channels, num_heads=size.heads, stages=size.blocks,
            global_att_blocks=size.global_blocks, window_spec=size.windows,
            global_pos_size=(size.background, size.background), weight_init="skip",
        )  # fmt: skip
        self.trunk.reset_classifier(0, reset_other=True)  # drops a norm that SAM 2 does not have
        self.neck = Neck([size.channels * 2**stage for stage in (3, 2, 1, 0)], out_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the maps (B, C, h, w) at strides 4, 8 and 16 of normalised images (B, 3, S, S)."""
        maps: tuple[Tensor, Tensor, Tensor] = self.neck(
            self.trunk.forward_intermediates(images, intermediates_only=True)
        )
        return maps


class Neck(nn.Module):
    """Brings each stage to the same width. Only the map at stride 16 receives the next coarser one, which is then
    dropped."""

    def __init__(self, in_channels: list[int], out_channels: int) -> None:
        """`in_channels` are those of the stages, from the coarsest to the finest."""
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, out_channels, 1))) for channels in in_channels
        )

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the maps at strides 4, 8 and 16 from the four stages, of which the finest is the first."""
        stride4, stride8, stride16, stride32 = (
            conv(stage) for conv, stage in zip(reversed(self.convs), stages, strict=True)
        )
        return stride4, stride8, stride16 + F.interpolate(stride32, scale_factor=2.0, mode="nearest")
