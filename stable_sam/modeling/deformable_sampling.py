"""Deformable sampling plugin (DSP): where the token-to-image attention reads the image features (paper, Figure 3)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, log
from typing import Literal

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

RING = 2.0
"""Distance from p, in feature cells, of the samples after the first before training."""
FIRST_SHARE = 0.9
"""Weight of the first of several samples before training."""


@dataclass(frozen=True, slots=True)
class Places:
    """The places that each cell p reads its features from: a weighted sum of K samples at p + dp."""

    offsets: Tensor
    """Offsets dp (..., K, 2), x then y, in feature cells."""
    weights: Tensor | None
    """Weights (..., K) of the samples; None when there is a single sample of weight 1."""

    @property
    def mean(self) -> Tensor:
        """The weighted mean of the offsets, (..., 2), x then y, in feature cells."""
        if self.weights is None:
            return self.offsets[..., 0, :]
        shares = self.weights / self.weights.sum(-1, keepdim=True)
        return (self.offsets * shares[..., None]).sum(-2)


class DeformableSampling(nn.Module):
    """Samples the projected features x*_p at p + dp, with offsets dp that a small network computes.

    x_p -> Conv 1x1 = x*_p -> DWConv 5x5, LayerNorm, GELU -> Conv 1x1 = dp; then x*_p is read at p + dp.

    Before training x*_{p+dp} = x_p, except for the small weight of the samples after the first: the plugin starts as
    SAM and has to learn to deviate from it.
    """

    def __init__(
        self,
        channels: int,
        max_offset: float = 4.0,
        *,
        bound: Literal["tanh", "free", "none"] = "tanh",
        amplitude: bool = False,
        samples: int = 1,
    ) -> None:
        """`channels` is the width C of the features. The other arguments are fields of `PluginSpec`, where `bound` is
        called `offsets`."""
        super().__init__()
        self.max_offset, self.bound, self.amplitude, self.samples = max_offset, bound, amplitude, samples
        self.project = nn.Conv2d(channels, channels, 1)
        self.context = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = LayerNorm2d(channels)
        weights = samples if samples > 1 else int(amplitude)
        self.offset = nn.Conv2d(channels, 2 * samples + weights, 1)
        nn.init.dirac_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]  # torch types bias as optional
        nn.init.zeros_(self.offset.weight)
        with torch.no_grad():
            self.offset.bias.copy_(self._start())  # type: ignore[union-attr]

    def _start(self) -> Tensor:
        """The initial bias of `offset`: it puts the first sample at the cell itself and the others on a ring around
        it."""
        if self.samples == 1:
            return torch.zeros(2 + int(self.amplitude))
        angles = torch.arange(self.samples - 1) * (2 * torch.pi / (self.samples - 1))
        ring = torch.stack((angles.cos(), angles.sin()), dim=-1) * min(RING / self.max_offset, 0.5)
        places = torch.cat((torch.zeros(1, 2), torch.atanh(ring) if self.bound == "tanh" else ring * self.max_offset))
        logits = torch.zeros(self.samples)
        logits[0] = log(FIRST_SHARE / (1 - FIRST_SHARE) * (self.samples - 1))
        return torch.cat((places.flatten(), logits))

    def forward(self, features: Tensor) -> tuple[Tensor, Places, Tensor]:
        """Sample the image features that enter decoder layer 2.

        features: (B, C, H, W). Returns x*_{p+dp} (B, C, H, W), the places of the cells (B, H, W), and the hidden
        features (B, C, H, W) that the offsets are computed from.
        """
        projected = self.project(features)
        hidden = F.gelu(self.norm(self.context(projected)))
        # The offsets are float32, because bfloat16 would round positions to a quarter of a cell.
        places = self._places(self.offset(hidden).permute(0, 2, 3, 1).float())
        return self.read(projected, places), places, hidden

    def read(self, features: Tensor, places: Places) -> Tensor:
        """Read `features` (B, C, H, W) at the places of the cells (B, H, W); returns (B, C, H, W)."""
        if self.bound == "none" and places.weights is None:
            return features
        samples = (bilinear_sample(features, dp.permute(0, 3, 1, 2)) for dp in places.offsets.unbind(-2))
        if places.weights is None:
            return next(samples)
        weighted = (x * weight[:, None] for x, weight in zip(samples, places.weights.unbind(-1), strict=True))
        return torch.stack(list(weighted)).sum(0).to(features.dtype)

    def project_tokens(self, features: Tensor) -> Tensor:
        """Project features x_p (B, HW, C) to x*_p (B, HW, C)."""
        return F.linear(features, self.project.weight.flatten(1), self.project.bias)

    def context_tokens(self, projected: Tensor) -> Tensor:
        """Compute the hidden features (B, HW, C) behind the offsets from x*_p (B, HW, C) on a square grid."""
        side = isqrt(projected.shape[1])
        # This is a view of channels-last memory, so neither the convolution nor the norm after it copies its input.
        context = self.context(torch.unflatten(projected.mT, 2, (side, side))).flatten(2).mT
        return F.gelu(F.layer_norm(context, self.norm.weight.shape, self.norm.weight, self.norm.bias, self.norm.eps))

    def token_places(self, hidden: Tensor) -> Places:
        """Compute the places of the cells (B, HW) from the hidden features (B, HW, C) of `context_tokens`."""
        return self._places(F.linear(hidden, self.offset.weight.flatten(1), self.offset.bias))

    def _places(self, predicted: Tensor) -> Places:
        """Split the offset network's output into the offsets, its first 2 * K channels, and the weights after them."""
        offsets = torch.unflatten(predicted[..., : 2 * self.samples], -1, (self.samples, 2))
        if self.bound == "tanh":
            offsets = self.max_offset * torch.tanh(offsets)
        elif self.bound == "none":
            offsets = torch.zeros_like(offsets)
        weights = predicted[..., 2 * self.samples :]
        if self.samples > 1:
            return Places(offsets, weights.softmax(-1))
        return Places(offsets, 2.0 * torch.sigmoid(weights) if self.amplitude else None)


def sample_tokens(features: Tensor, places: Places, scale: Tensor) -> Tensor:
    """Read features (B, HW, C) of a square grid at the places of the cells (B, HW), multiplied by `scale` (B, 1, 1).

    The result (B, HW, C) equals that of `DeformableSampling.read`, times `scale`, but for rounding.
    """
    batch, cells, channels = features.shape
    side, count = isqrt(cells), places.offsets.shape[2]
    steps = torch.arange(side, dtype=places.offsets.dtype, device=places.offsets.device)
    ys, xs = torch.meshgrid(steps, steps, indexing="ij")
    centers = torch.stack((xs, ys), dim=-1).flatten(0, 1)[:, None]
    positions = (centers + places.offsets).clamp(0, side - 1)  # (B, HW, K, 2)
    low = positions.floor()
    part = positions - low
    columns, rows = (torch.stack((low, (low + 1).clamp(max=side - 1)), dim=-1).long()).unbind(3)  # (B, HW, K, 2)
    across, down = torch.stack((1 - part, part), dim=-1).unbind(3)
    first = torch.arange(batch, device=features.device).view(batch, 1, 1, 1, 1) * cells
    corners = first + rows[..., :, None] * side + columns[..., None, :]  # (B, HW, K, 2, 2)
    if places.weights is not None:
        scale = scale * places.weights
    weights = down[..., :, None] * across[..., None, :] * scale[..., None, None]
    # A cell's channels are adjacent in memory, so each sample is a weighted sum of whole rows.
    sampled = F.embedding_bag(
        corners.view(-1, 4 * count), features.reshape(-1, channels), mode="sum",
        per_sample_weights=weights.reshape(-1, 4 * count),
    )  # fmt: skip
    return sampled.view(batch, cells, channels)


def bilinear_sample(features: Tensor, offsets: Tensor) -> Tensor:
    """Read `features` (B, C, H, W) at p + dp, where dp is `offsets` (B, 2, H, W), x then y, in feature cells.

    A position outside the grid reads the value at the border.
    """
    height, width = features.shape[-2:]
    dtype, device = offsets.dtype, offsets.device
    ys = torch.arange(height, dtype=dtype, device=device).view(1, height, 1)
    xs = torch.arange(width, dtype=dtype, device=device).view(1, 1, width)
    grid_x = (xs + offsets[:, 0] + 0.5) * (2.0 / width) - 1.0
    grid_y = (ys + offsets[:, 1] + 0.5) * (2.0 / height) - 1.0
    grid = torch.stack((grid_x, grid_y), dim=-1)
    sampled = F.grid_sample(features.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.to(features.dtype)
