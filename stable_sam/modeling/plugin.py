"""The Stable-SAM plugin, hosted in place by the token-to-image attention of decoder layer 2 (paper, Figure 3).

Everything else of SAM stays as it is and frozen. The host wraps one attention module, so that SAM's own decoder code
runs unchanged, in training and in inference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from stable_sam.modeling.deformable_sampling import DeformableSampling, sample_tokens
from stable_sam.modeling.dynamic_routing import DynamicRouting
from stable_sam.modeling.plugin_spec import PluginSpec

PLUGIN_LAYER = 1
"""Second and last TwoWayAttentionBlock, counted from 0."""


@dataclass(frozen=True, slots=True)
class PluginTrace:
    """What the plugin did in one decoder pass: alpha (B, 2) and the mean displacement dp of each cell's
    samples (B, 2, H, W) in feature cells."""

    alpha: Tensor
    offsets: Tensor
    quality: Tensor | None
    """(B,), of a plugin that estimates it."""


class StableSamPlugin(nn.Module):
    """DSP and DRP: alpha_1 * x*_{p+dp} + alpha_2 * x_p, about 0.08 M parameters at 256 channels."""

    def __init__(self, channels: int = 256, spec: PluginSpec | None = None) -> None:
        super().__init__()
        self.spec = spec = spec or PluginSpec()
        self.enabled = True
        """False: the base is SAM, bit for bit."""
        self.forced_alpha: tuple[float, float] | None = None
        """Replaces the routing's own alpha: (0, 1) is SAM, (1, 0) the deformed features alone."""
        self.regular_below = spec.regular_below
        """See `PluginSpec`."""
        self.always_deforms = False
        """True while alpha is taught the gain: every prompt takes the deformed path, also where `regular_below` would
        give it SAM's."""
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
        """Calibrate the features.

        features and positions (their positional encoding): (B, C, H, W); token: (B, C). Returns the calibrated features
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
            # An amplitude is the features' alone.
            placed = places if self.sampling.samples > 1 else replace(places, weights=None)
            positions = dsp * self.sampling.read(positions, placed) + own * positions
        return dsp * sampled + own * features, positions, PluginTrace(alpha, places.mean.permute(0, 3, 1, 2), quality)

    def calibrate_tokens(self, features: Tensor, projected: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, for inference: features x_p and projected x*_p, both (B, HW, C) of a square grid, token (B, C).

        Returns the calibrated features (B, HW, C) and alpha (B, 2). For a spec that does not move positions.
        """
        hidden = None
        if self.routing is not None and self.spec.routing_reads == "features":
            hidden = self.sampling.context_tokens(projected)
        alpha, _ = self._alpha(token, None if hidden is None else _as_grid(hidden))
        places = self.sampling.token_places(self.sampling.context_tokens(projected) if hidden is None else hidden)
        dsp, own = alpha[:, :, None, None].unbind(1)
        if self.regular_below == 0:
            return sample_tokens(projected, places, dsp).addcmul_(features, own), alpha
        # To compute the offsets of the other prompts alone was measured to save nothing.
        sampled = sample_tokens(projected, places, torch.ones_like(dsp))
        return torch.where(dsp < self.regular_below, features, sampled), alpha

    def _alpha(self, token: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.forced_alpha is not None or self.routing is None:
            return token.new_tensor(self.forced_alpha or (1.0, 0.0)).expand(len(token), 2), None
        found: tuple[Tensor, Tensor | None] = self.routing(token, hidden)
        return found


class PluginHost(nn.Module):
    """SAM's token-to-image attention of a decoder layer, fed with the plugin's features.

    The token the routing sees is the layer's query, that is t_o plus the constant embedding of that output token, which
    the routing's first Linear absorbs.
    """

    def __init__(self, attention: nn.Module, plugin: StableSamPlugin) -> None:
        super().__init__()
        self.attention = attention
        self.plugin = plugin
        self.trace: PluginTrace | None = None
        self.change: Tensor | None = None
        """(B, HW, C), what the plugin added to the features in the pass that is going on; None when disabled."""

    @property
    def enabled(self) -> bool:
        """`StableSamPlugin.enabled`."""
        return self.plugin.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.plugin.enabled = value

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: (B, N, C) tokens; k: (B, HW, C) features + positional encoding; v: (B, HW, C) features, square grid."""
        self.trace = self.change = None
        if not self.plugin.enabled:
            return self.attention(q=q, k=k, v=v)  # type: ignore[no-any-return]
        # Adding the changes, and not the new features, keeps SAM's keys bit for bit when nothing changes.
        self.change, moved, self.trace = self.calibrate(q, k, v)
        keys = k + self.change
        if self.plugin.spec.move_positions:
            keys = keys + moved
        return self.attention(q=q, k=keys, v=v + self.change)  # type: ignore[no-any-return]

    def calibrate(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, PluginTrace]:
        """What the plugin adds to the features and to their positions, both (B, HW, C), and the trace."""
        features, positions = _as_grid(v), _as_grid(k - v)
        calibrated, moved, trace = self.plugin(features, positions, q[:, self.plugin.spec.routing_token])
        return (
            (calibrated - features).flatten(2).transpose(1, 2),
            (moved - positions).flatten(2).transpose(1, 2),
            trace,
        )


class ImageStreamHost(nn.Module):
    """SAM's image-to-token attention of the same layer: here the calibrated features enter the image stream.

    SAM adds this attention's output to its image features, so that adding the plugin's change to the output replaces
    them by the calibrated ones in all that follows.
    """

    def __init__(self, attention: nn.Module, host: PluginHost) -> None:
        super().__init__()
        self.attention = attention
        self._hosts = (host,)  # in a tuple, so that the host is no submodule twice

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: (B, HW, C) image features + positional encoding; k, v: (B, N, C) tokens."""
        change = self._hosts[0].change
        if change is None:
            return self.attention(q=q, k=k, v=v)  # type: ignore[no-any-return]
        return self.attention(q=q + change, k=k, v=v) + change  # type: ignore[no-any-return]


def attach_plugin(sam: Sam, plugin: StableSamPlugin) -> PluginHost:
    """Freeze `sam`, host `plugin` in its decoder in place and return layer 2's host; only the plugin learns."""
    layers = sam.mask_decoder.transformer.layers
    if isinstance(layers[PLUGIN_LAYER].cross_attn_token_to_image, PluginHost):
        raise ValueError("this Sam already hosts a plugin: detach it first")
    sam.requires_grad_(False)
    for block in layers if plugin.spec.layers == "both" else [layers[PLUGIN_LAYER]]:
        host = PluginHost(block.cross_attn_token_to_image, plugin)
        block.cross_attn_token_to_image = host
        if plugin.spec.calibrates == "stream":
            block.cross_attn_image_to_token = ImageStreamHost(block.cross_attn_image_to_token, host)
    plugin.train(sam.training)
    return host


def _as_grid(tokens: Tensor) -> Tensor:
    """(B, HW, C) to (B, C, H, W), a square grid."""
    side = int(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], side, side)
