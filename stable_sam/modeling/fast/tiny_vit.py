"""MobileSAM's image encoder with its batch norms folded into the convolutions, for inference.

The reference is `modeling.bases.mobile_sam.TinyVitEncoder`. Its batch norms pass over arrays of up to 64 MB each, which
takes as long as the convolutions between them. This module multiplies the convolutions' small weights instead, in every
pass, so that no second copy of the weights can become out of date. Pixels stay in the layout (B, H, W, C) throughout,
which the transformer's blocks need, so that nothing is transposed.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def encode_tiny_vit(encoder: Any, images: Tensor) -> Tensor:
    """Compute `encoder(images)`, the embedding (B, 256, S/16, S/16) of normalised images (B, 3, S, S)."""
    trunk = encoder.trunk
    x = images.contiguous(memory_format=torch.channels_last)
    x = _folded(trunk.patch_embed.conv2, F.gelu(_folded(trunk.patch_embed.conv1, x)))
    for block in trunk.stages[0].blocks:
        x = F.gelu(_three_convolutions(block, x) + x)
    for stage in trunk.stages[1:]:
        x = _three_convolutions(stage.downsample, x)
        for block in stage.blocks:
            x = _transformed(block, x)
    return cast(Tensor, encoder.neck(x))


def _folded(layer: Any, x: Tensor) -> Tensor:
    """Compute timm's `ConvNorm` of x (B, C, H, W)."""
    conv, norm = layer.conv, layer.bn
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight, bias = conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
    if conv.kernel_size == (1, 1):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, groups=conv.groups)


def _three_convolutions(block: Any, x: Tensor) -> Tensor:
    """Compute timm's `PatchMerging`, or its `MBConv` up to the sum, of x (B, C, H, W)."""
    return _folded(block.conv3, F.gelu(_folded(block.conv2, F.gelu(_folded(block.conv1, x)))))


def _transformed(block: Any, x: Tensor) -> Tensor:
    """Compute timm's `TinyVitBlock` of x (B, C, H, W) in its layout."""
    size = block.window_size
    pixels = x.permute(0, 2, 3, 1)
    batch, height, width, channels = pixels.shape
    padded = F.pad(pixels, (0, 0, 0, -width % size, 0, -height % size))
    rows, columns = padded.shape[1] // size, padded.shape[2] // size
    windows = padded.reshape(batch, rows, size, columns, size, channels).transpose(2, 3)
    read = _attended(block.attn, windows.reshape(-1, size * size, channels))
    read = read.reshape(batch, rows, columns, size, size, channels).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    x = _folded(block.local_conv, (pixels + read[:, :height, :width]).permute(0, 3, 1, 2))
    pixels = x.permute(0, 2, 3, 1)
    return pixels.add(block.mlp(pixels)).permute(0, 3, 1, 2)


def _attended(attention: Any, x: Tensor) -> Tensor:
    """Compute timm's `Attention` of windows x (B, N, C), without its cache of biases, which a CUDA graph overwrites."""
    biases = attention.attention_biases[None, :, attention.attention_bias_idxs]
    qkv = attention.qkv(attention.norm(x)).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
    q, k, v = qkv.split([attention.key_dim, attention.key_dim, attention.val_dim], dim=3)
    read = F.scaled_dot_product_attention(q, k, v, attn_mask=biases.to(q.dtype))
    return cast(Tensor, attention.proj(read.transpose(1, 2).flatten(2)))
