"""The choices that the paper leaves open about the plugin, as a config that is stored with the plugin's weights.

The docstring of each field tells what the paper says. `benchmarks/ablations.py` compares the choices.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stable_sam.config.section import Section


class PluginSpec(Section):
    """The architecture of a plugin: deformable sampling (DSP) and dynamic routing (DRP)."""

    hidden: int = Field(default=16, ge=1)
    """Width of the dynamic routing plugin. The paper gives 0.08 M parameters in all, which fits 16 to 32."""
    offsets: Literal["tanh", "free", "none"] = "tanh"
    """How offsets are bounded: tanh bounds them by max_offset * tanh(.), free does not bound them, and none reads x*_p
    at p. The paper gives no bound."""
    max_offset: float = Field(default=4.0, gt=0)
    """Reach of bounded offsets in feature cells: 4 cells are 64 input pixels."""
    samples: int = Field(default=1, ge=1, le=16)
    """Samples that each cell reads; their weights sum to 1, as in deformable attention. The paper shows one sample.
    Before training the samples after the first lie at most two cells, and at most half of `max_offset`, away."""
    amplitude: bool = False
    """Whether the offset network learns a factor, 2 * sigmoid(.), for each sampled location. Later versions of the
    paper name "sampling locations and amplitudes" without a definition. Several samples have weights instead."""
    routing: Literal["softmax", "sigmoid", "none"] = "softmax"
    """How alpha is normalised, which the paper does not say; none means no routing, alpha = (1, 0)."""
    initial_dsp_weight: float = Field(default=0.5, gt=0, lt=1)
    """alpha_1 before training. A new plugin is SAM at any value, because it starts with x*_{p+dp} = x_p."""
    routing_token: int = Field(default=1, ge=0, le=4)
    """Output token that is t_o: 0 is the IoU token, 1 the single-mask token, 2-4 the multimask tokens. The paper says
    "a mask output token"."""
    routing_reads: Literal["token", "features"] = "features"
    """What alpha is computed from: t_o alone, as in the paper, or t_o and the offset network's hidden features, pooled
    by a learnt attention (4,352 parameters more). The hidden features depend on both the prompt and the image."""
    estimates_quality: bool = False
    """Whether the routing has a second output, the quality of the prompt: the IoU of a box with the tight one. It
    teaches the routing to tell good prompts from bad ones, in steps that cost a third of whole ones; inference does not
    use it. The paper has no such output."""
    move_positions: bool = False
    """Whether the keys' positional encoding is sampled with the features. The paper does not say."""
    layers: Literal["second", "both"] = "second"
    """Decoder layers that the one plugin calibrates. In the paper it is the second."""
    calibrates: Literal["attention", "stream"] = "stream"
    """What reads the calibrated features: the token-to-image attention alone, as in the paper, or also the image
    stream, which the rest of the decoder and the mask are computed from."""
    regular_below: float = Field(default=0.0, ge=0, le=1)
    """Alpha_1 below which a prompt takes SAM's regular path, alpha = (0, 1), bit for bit, while every other prompt uses
    the deformed features alone, alpha = (1, 0). With 0 the features are mixed for every prompt, as in the paper. When
    alpha was taught the gain, 0.5 gives the highest mean IoU on prompts like those of the training; higher values cost
    accurate prompts less (docs/results.md)."""
