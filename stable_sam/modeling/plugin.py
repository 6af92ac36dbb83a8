"""The Stable-SAM plugin, hosted in place by the token-to-image attention of decoder layer 2 (paper, Figure 3).

Everything else of SAM stays as it is and frozen. The host wraps one attention module, so that SAM's own decoder code
runs unchanged, in training and in inference.
"""

from __future__ import annotations

from dataclasses import dataclass

from segment_anything.modeling import Sam
from torch import Tensor, nn

from stable_sam.modeling.deformable_sampling import DeformableSampling
from stable_sam.modeling.dynamic_routing import DynamicRouting

PLUGIN_LAYER = 1
"""Second and last TwoWayAttentionBlock, counted from 0."""
ROUTING_TOKEN = 1
"""t_o: output token 0 is the IoU token, 1 the single-mask token, 2-4 the multimask tokens. The paper does not say which
mask token; the single-mask token is the one whose mask a noisy box or several points ask for."""


@dataclass(frozen=True, slots=True)
class PluginTrace:
    """What the plugin did in one decoder pass: alpha (B, 2) and offsets (B, 2, H, W) in feature cells."""

    alpha: Tensor
    offsets: Tensor


class StableSamPlugin(nn.Module):
    """DSP and DRP: alpha_1 * x*_{p+dp} + alpha_2 * x_p, about 0.08 M parameters at 256 channels."""

    def __init__(self, channels: int = 256, hidden: int = 16, max_offset: float = 4.0) -> None:
        super().__init__()
        self.sampling = DeformableSampling(channels, max_offset)
        self.routing = DynamicRouting(channels, hidden)

    def forward(self, features: Tensor, token: Tensor, alpha: Tensor | None = None) -> tuple[Tensor, PluginTrace]:
        """Calibrate the features.

        features: (B, C, H, W); token: (B, C); alpha: (B, 2) replaces the routing's own (for tests and ablations).
        Returns the features given to the attention (B, C, H, W), and the trace.
        """
        sampled, offsets = self.sampling(features)
        alpha = self.routing(token) if alpha is None else alpha
        weight = alpha[:, :, None, None, None]
        return weight[:, 0] * sampled + weight[:, 1] * features, PluginTrace(alpha, offsets)


class PluginHost(nn.Module):
    """SAM's token-to-image attention of layer 2, fed with the plugin's features.

    The positional encoding of the keys does not move with the samples: it is added to the calibrated features as SAM
    adds it to its own. The token the routing sees is the layer's query, that is t_o plus the constant embedding of
    that output token, which the routing's first Linear absorbs.
    """

    def __init__(self, attention: nn.Module, plugin: StableSamPlugin) -> None:
        super().__init__()
        self.attention = attention
        self.plugin = plugin
        self.enabled = True
        self.forced_alpha: tuple[float, float] | None = None
        self.trace: PluginTrace | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: (B, N, C) tokens; k: (B, HW, C) features + positional encoding; v: (B, HW, C) features, square grid."""
        self.trace = None
        if not self.enabled:
            return self.attention(q=q, k=k, v=v)  # type: ignore[no-any-return]
        batch, cells, channels = v.shape
        side = int(cells**0.5)
        features = v.transpose(1, 2).reshape(batch, channels, side, side)
        alpha = None if self.forced_alpha is None else v.new_tensor(self.forced_alpha).expand(batch, 2)
        calibrated, self.trace = self.plugin(features, q[:, ROUTING_TOKEN], alpha)
        # Adding the change, and not the new features, keeps SAM's keys bit for bit when nothing changes.
        change = (calibrated - features).flatten(2).transpose(1, 2)
        return self.attention(q=q, k=k + change, v=v + change)  # type: ignore[no-any-return]


def attach_plugin(sam: Sam, plugin: StableSamPlugin) -> PluginHost:
    """Freeze `sam`, host `plugin` in its decoder in place and return the host; only the plugin's parameters learn."""
    block = sam.mask_decoder.transformer.layers[PLUGIN_LAYER]
    if isinstance(block.cross_attn_token_to_image, PluginHost):
        raise ValueError("this Sam already hosts a plugin: detach it first")
    sam.requires_grad_(False)
    host = PluginHost(block.cross_attn_token_to_image, plugin)
    host.train(sam.training)
    block.cross_attn_token_to_image = host
    return host


def detach_plugin(sam: Sam) -> None:
    """Give `sam` its own attention back; nothing happens when it hosts no plugin."""
    block = sam.mask_decoder.transformer.layers[PLUGIN_LAYER]
    if isinstance(block.cross_attn_token_to_image, PluginHost):
        block.cross_attn_token_to_image = block.cross_attn_token_to_image.attention


def count_parameters(module: nn.Module) -> int:
    """Number of learnable values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


__all__ = ["PluginHost", "PluginTrace", "StableSamPlugin", "attach_plugin", "count_parameters", "detach_plugin"]
