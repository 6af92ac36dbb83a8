"""Deformable sampling plugin (DSP): where the token-to-image attention reads the image features (paper, Figure 3)."""

from __future__ import annotations

from math import isqrt
from typing import Literal

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn


class DeformableSampling(nn.Module):
    """x*_{p+dp}: features sampled at positions that a small offset network moves.

    x_p -> Conv 1x1 = x*_p -> DWConv 5x5, LayerNorm, GELU -> Conv 1x1 = dp; then x*_p is read at p + dp.

    Initialised so that x*_{p+dp} = x_p: the plugin starts as SAM and has to learn to leave it.
    """

    def __init__(
        self,
        channels: int,
        max_offset: float = 4.0,
        *,
        bound: Literal["tanh", "free", "none"] = "tanh",
        amplitude: bool = False,
    ) -> None:
        """`max_offset`: reach of an offset in feature cells; dp = max_offset * tanh(.); the rest as in
        `PluginSpec`."""
        super().__init__()
        self.max_offset, self.bound, self.amplitude = max_offset, bound, amplitude
        self.project = nn.Conv2d(channels, channels, 1)
        self.context = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = LayerNorm2d(channels)
        self.offset = nn.Conv2d(channels, 3 if amplitude else 2, 1)
        nn.init.dirac_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]  # torch types bias as optional
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sample the features.

        features: (B, C, H, W), the image features entering decoder layer 2.
        Returns x*_{p+dp} (B, C, H, W), the offsets dp (B, 2, H, W), x then y, in feature cells, and what the offsets
        are computed from (B, C, H, W).
        """
        projected = self.project(features)
        hidden = F.gelu(self.norm(self.context(projected)))
        predicted = self.offset(hidden)
        offsets = predicted[:, :2].float()  # bfloat16 would round positions to a quarter of a cell
        if self.bound == "tanh":
            offsets = self.max_offset * torch.tanh(offsets)
        sampled = projected
        if self.bound == "none":
            offsets = torch.zeros_like(offsets)
        else:
            sampled = bilinear_sample(projected, offsets)
        if self.amplitude:
            sampled = sampled * (2.0 * torch.sigmoid(predicted[:, 2:]))
        return sampled, offsets, hidden

    def project_tokens(self, features: Tensor) -> Tensor:
        """x*_p (B, HW, C) of features (B, HW, C) of a square grid."""
        return F.linear(features, self.project.weight.flatten(1), self.project.bias)

    def context_tokens(self, projected: Tensor) -> Tensor:
        """What the offsets are computed from (B, HW, C), of x*_p (B, HW, C) of a square grid."""
        side = isqrt(projected.shape[1])
        # A view of channels-last memory, so that neither the convolution nor what follows moves anything.
        context = self.context(torch.unflatten(projected.mT, 2, (side, side))).flatten(2).mT
        return F.gelu(F.layer_norm(context, self.norm.weight.shape, self.norm.weight, self.norm.bias, self.norm.eps))

    def offset_tokens(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """dp (B, HW, 2) and the amplitudes (B, HW, 1) from what `context_tokens` returns."""
        predicted = F.linear(hidden, self.offset.weight.flatten(1), self.offset.bias)
        offsets = predicted[..., :2]
        if self.bound == "tanh":
            offsets = self.max_offset * torch.tanh(offsets)
        elif self.bound == "none":
            offsets = torch.zeros_like(offsets)
        return offsets, 2.0 * torch.sigmoid(predicted[..., 2:]) if self.amplitude else None


def sample_tokens(features: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    """`bilinear_sample`, times `scale` (broadcast to (B, HW, 1)), of features (B, HW, C) at offsets (B, HW, 2)."""
    batch, cells, channels = features.shape
    side = isqrt(cells)
    steps = torch.arange(side, dtype=offsets.dtype, device=offsets.device)
    ys, xs = torch.meshgrid(steps, steps, indexing="ij")
    positions = (torch.stack((xs, ys), dim=-1).flatten(0, 1) + offsets).clamp(0, side - 1)  # (B, HW, 2)
    low = positions.floor()
    part = positions - low
    columns, rows = (torch.stack((low, (low + 1).clamp(max=side - 1)), dim=-1).long()).unbind(2)  # (B, HW, 2)
    across, down = torch.stack((1 - part, part), dim=-1).unbind(2)
    first = torch.arange(batch, device=offsets.device).view(batch, 1, 1, 1) * cells
    corners = first + rows[..., :, None] * side + columns[..., None, :]  # (B, HW, 2, 2)
    weights = down[..., :, None] * across[..., None, :] * scale[..., None]
    # A weighted sum of whole rows: a cell's channels lie together.
    sampled = F.embedding_bag(
        corners.view(-1, 4), features.reshape(-1, channels), per_sample_weights=weights.reshape(-1, 4), mode="sum"
    )
    return sampled.view(batch, cells, channels)


def bilinear_sample(features: Tensor, offsets: Tensor) -> Tensor:
    """Read `features` (B, C, H, W) at p + dp, dp = `offsets` (B, 2, H, W) in cells; outside, the border's value."""
    height, width = features.shape[-2:]
    dtype, device = offsets.dtype, offsets.device
    ys = torch.arange(height, dtype=dtype, device=device).view(1, height, 1)
    xs = torch.arange(width, dtype=dtype, device=device).view(1, 1, width)
    grid_x = (xs + offsets[:, 0] + 0.5) * (2.0 / width) - 1.0
    grid_y = (ys + offsets[:, 1] + 0.5) * (2.0 / height) - 1.0
    grid = torch.stack((grid_x, grid_y), dim=-1)
    sampled = F.grid_sample(features.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.to(features.dtype)
