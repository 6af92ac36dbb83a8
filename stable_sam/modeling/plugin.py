"""The Stable-SAM plugin, hosted in place by the token-to-image attention of decoder layer 2 (paper, Figure 3).

Every other part of SAM stays unchanged and frozen. The host wraps one attention module, so that SAM's own decoder code
runs unchanged, in training and in inference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stable_sam.modeling.bases.base import BaseSam
from stable_sam.modeling.deformable_sampling import DeformableSampling, sample_tokens
from stable_sam.modeling.dynamic_routing import DynamicRouting
from stable_sam.modeling.plugin_spec import PluginSpec

PLUGIN_LAYER = 1
"""Index of decoder layer 2, the last `TwoWayAttentionBlock`."""


@dataclass(frozen=True, slots=True)
class PluginTrace:
    """What the plugin did in one decoder pass of B prompts."""

    alpha: Tensor
    """Routing weights (B, 2): alpha_1 of the deformed features, alpha_2 of SAM's own."""
    offsets: Tensor
    """Mean displacement dp of each cell's samples, (B, 2, H, W), x then y, in feature cells."""
    quality: Tensor | None
    """Estimated quality (B,); None for a plugin that does not estimate it."""


class StableSamPlugin(nn.Module):
    """DSP and DRP together give alpha_1 * x*_{p+dp} + alpha_2 * x_p; about 0.08 M parameters at 256 channels."""

    def __init__(self, channels: int = 256, spec: PluginSpec | None = None) -> None:
        super().__init__()
        self.spec = spec = spec or PluginSpec()
        self.enabled = True
        """Whether the decoder uses the plugin; False gives the base's masks bit for bit."""
        self.forced_alpha: tuple[float, float] | None = None
        """Alpha to use instead of the routing's own: (0, 1) is SAM, (1, 0) the deformed features alone."""
        self.regular_below = spec.regular_below
        """Alpha_1 below which a prompt takes SAM's regular path, as `PluginSpec.regular_below` describes."""
        self.always_deforms = False
        """True while alpha is taught the gain: then every prompt takes the deformed path, whatever `regular_below`
        says."""
        self.sampling = DeformableSampling(
            channels, spec.max_offset, bound=spec.offsets, amplitude=spec.amplitude, samples=spec.samples
        )
        self.routing = None
        if spec.routing != "none":
            self.routing = DynamicRouting(
                channels, spec.hidden, spec.initial_dsp_weight,
                sigmoid=spec.routing == "sigmoid", reads_features=spec.routing_reads == "features",
                estimates_quality=spec.estimates_quality,
            )  # fmt: skip

    def forward(self, features: Tensor, positions: Tensor, token: Tensor) -> tuple[Tensor, Tensor, PluginTrace]:
        """Calibrate the image features of B prompts.

        features, and positions, their positional encoding: (B, C, H, W). token: (B, C). Returns the calibrated features
        and positions, both (B, C, H, W), and the trace.
        """
        sampled, places, hidden = self.sampling(features)
        alpha, quality = self._alpha(token, hidden)
        used = alpha
        if self.regular_below > 0:
            regular = (alpha[:, :1] < self.regular_below) & (not self.always_deforms)
            used = torch.where(regular, alpha.new_tensor((0.0, 1.0)), alpha.new_tensor((1.0, 0.0)))
        dsp, own = used[:, :, None, None, None].unbind(1)
        if self.spec.move_positions:
            # An amplitude scales the features, not their positions.
            placed = places if self.sampling.samples > 1 else replace(places, weights=None)
            positions = dsp * self.sampling.read(positions, placed) + own * positions
        return dsp * sampled + own * features, positions, PluginTrace(alpha, places.mean.permute(0, 3, 1, 2), quality)

    def calibrate_tokens(self, features: Tensor, projected: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Calibrate features as `forward` does, faster, for inference and a spec that does not move positions.

        features: x_p, and projected: x*_p, both (B, HW, C) on a square grid. token: (B, C). Returns the calibrated
        features (B, HW, C) and alpha (B, 2).
        """
        hidden = None
        if self.routing is not None and self.spec.routing_reads == "features":
            hidden = self.sampling.context_tokens(projected)
        alpha, _ = self._alpha(token, None if hidden is None else _as_grid(hidden))
        places = self.sampling.token_places(self.sampling.context_tokens(projected) if hidden is None else hidden)
        dsp, own = alpha[:, :, None, None].unbind(1)
        if self.regular_below == 0:
            return sample_tokens(projected, places, dsp).addcmul_(features, own), alpha
        # Prompts on SAM's path are sampled too: leaving them out was measured to save nothing.
        sampled = sample_tokens(projected, places, torch.ones_like(dsp))
        return torch.where(dsp < self.regular_below, features, sampled), alpha

    def _alpha(self, token: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.forced_alpha is not None or self.routing is None:
            return token.new_tensor(self.forced_alpha or (1.0, 0.0)).expand(len(token), 2), None
        found: tuple[Tensor, Tensor | None] = self.routing(token, hidden)
        return found


class PluginHost(nn.Module):
    """SAM's token-to-image attention of a decoder layer, which here reads the plugin's features.

    The routing's token is the layer's query, which is t_o plus the constant embedding of that output token; the
    routing's first Linear absorbs the constant.
    """

    def __init__(self, attention: nn.Module, plugin: StableSamPlugin, iou_token: int = 0) -> None:
        """`iou_token` is the index of the IoU token among the decoder's tokens."""
        super().__init__()
        self.attention = attention
        self.plugin = plugin
        self.routing_token = iou_token + plugin.spec.routing_token
        """Index of the routing's token t_o among the decoder's tokens."""
        self.trace: PluginTrace | None = None
        self.change: Tensor | None = None
        """Change (B, HW, C) that the plugin made to the features in the current pass; None when it is disabled."""

    @property
    def enabled(self) -> bool:
        """Whether the decoder uses the plugin, as `StableSamPlugin.enabled` says."""
        return self.plugin.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.plugin.enabled = value

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from tokens q (B, N, C) to the calibrated features.

        v: features (B, HW, C) on a square grid. k: features plus positional encoding (B, HW, C).
        """
        self.trace = self.change = None
        if not self.plugin.enabled:
            return self.attention(q=q, k=k, v=v)  # type: ignore[no-any-return]
        # Adding changes instead of replacing features keeps SAM's keys bit for bit when the plugin changes nothing.
        self.change, moved, self.trace = self.calibrate(q, k, v)
        keys = k + self.change
        if self.plugin.spec.move_positions:
            keys = keys + moved
        return self.attention(q=q, k=keys, v=v + self.change)  # type: ignore[no-any-return]

    def calibrate(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, PluginTrace]:
        """Return the plugin's changes of the features and of their positions, both (B, HW, C), and the trace.

        The arguments are those of `forward`.
        """
        features, positions = _as_grid(v), _as_grid(k - v)
        calibrated, moved, trace = self.plugin(features, positions, q[:, self.routing_token])
        return (
            (calibrated - features).flatten(2).transpose(1, 2),
            (moved - positions).flatten(2).transpose(1, 2),
            trace,
        )


class ImageStreamHost(nn.Module):
    """SAM's image-to-token attention of the plugin's layer, through which the calibrated features enter the image
    stream.

    SAM adds this attention's output to its image features. With the plugin's change added to the output, the rest of
    the decoder reads the calibrated features.
    """

    def __init__(self, attention: nn.Module, host: PluginHost) -> None:
        super().__init__()
        self.attention = attention
        self._hosts = (host,)  # in a tuple, so that the host is not registered as a submodule a second time

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from the image to tokens k, v (B, N, C); q: image features plus positional encoding (B, HW, C)."""
        change = self._hosts[0].change
        if change is None:
            return self.attention(q=q, k=k, v=v)  # type: ignore[no-any-return]
        return self.attention(q=q + change, k=k, v=v) + change  # type: ignore[no-any-return]


def attach_plugin(sam: BaseSam, plugin: StableSamPlugin) -> PluginHost:
    """Freeze `sam`, host `plugin` in its decoder in place and return layer 2's host; only the plugin learns.

    Raises `ValueError` when `sam` hosts a plugin already.
    """
    layers = sam.mask_decoder.transformer.layers
    if isinstance(layers[PLUGIN_LAYER].cross_attn_token_to_image, PluginHost):
        raise ValueError("this Sam already hosts a plugin: detach it first")
    sam.requires_grad_(False)
    for block in layers if plugin.spec.layers == "both" else [layers[PLUGIN_LAYER]]:
        host = PluginHost(block.cross_attn_token_to_image, plugin, sam.iou_token)
        block.cross_attn_token_to_image = host
        if plugin.spec.calibrates == "stream":
            block.cross_attn_image_to_token = ImageStreamHost(block.cross_attn_image_to_token, host)
    plugin.train(sam.training)
    return host


def _as_grid(tokens: Tensor) -> Tensor:
    """Reshape tokens (B, HW, C) of a square grid to (B, C, H, W)."""
    side = int(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], side, side)
