"""What the paper leaves open about the plugin, as settings: stored with its weights.

Beside each default stands what the paper says. `benchmarks/ablations.py` compares them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stable_sam.config.section import Section


class PluginSpec(Section):
    """The architecture of a plugin."""

    hidden: int = Field(default=16, ge=1)
    """Width of the dynamic routing plugin. The paper gives 0.08 M parameters in all, which fits 16 to 32."""
    offsets: Literal["tanh", "free", "none"] = "tanh"
    """Offsets bounded by max_offset * tanh(.), unbounded, or none (x*_p is read where it is). The paper gives no
    bound."""
    max_offset: float = Field(default=4.0, gt=0)
    """Reach of bounded offsets in feature cells: 4 cells are 64 input pixels."""
    samples: int = Field(default=1, ge=1, le=16)
    """Places that each cell is read from; their weights sum to 1, as in deformable attention. The paper shows one.
    Those after the first start at most two cells, and at most half of `max_offset`, away."""
    amplitude: bool = False
    """A factor for each sampled location, 2 * sigmoid(.), learnt by the offset network; later versions of the paper
    name "sampling locations and amplitudes" without a definition. Several samples have weights instead."""
    routing: Literal["softmax", "sigmoid", "none"] = "softmax"
    """How alpha is normalised, which the paper does not say; none: alpha = (1, 0), no routing."""
    initial_dsp_weight: float = Field(default=0.5, gt=0, lt=1)
    """alpha_1 before training. A new plugin is SAM at any value, because it starts with x*_{p+dp} = x_p."""
    routing_token: int = Field(default=1, ge=0, le=4)
    """t_o: 0 is the IoU token, 1 the single-mask token, 2-4 the multimask tokens. The paper says "a mask output
    token"."""
    routing_reads: Literal["token", "features"] = "features"
    """What alpha is computed from: t_o alone, as in the paper, or t_o and what the offset network computes at each
    cell, in which the prompt and the picture have met, pooled by a learnt attention (4,352 values more)."""
    estimates_quality: bool = False
    """Whether the routing has a second output, the prompt's quality: the IoU of a box with the tight one. It teaches
    the routing, in steps that cost a third, what good and bad prompts look like; inference does not use it. The paper
    has no such output."""
    move_positions: bool = False
    """Whether the keys' positional encoding is sampled with the features. The paper does not say."""
    layers: Literal["second", "both"] = "second"
    """Decoder layers that the one plugin calibrates. The paper: the second."""
    calibrates: Literal["attention", "stream"] = "stream"
    """What the calibrated features are given to: the token-to-image attention alone, as in the paper, or the image
    stream too, from which the rest of the decoder and the mask are made."""
    regular_below: float = Field(default=0.0, ge=0, le=1)
    """Above 0 alpha is a switch: a prompt whose alpha_1 is lower takes SAM's regular path, as with alpha = (0, 1), bit
    for bit, and every other one the deformed features alone, alpha = (1, 0). 0: the features are mixed for every
    prompt, as in the paper. For an alpha that was taught the gain a half gives the highest mean IoU on prompts like
    those it was taught; higher values cost accurate prompts less (docs/results.md)."""
