"""The last part of a plugin's training: alpha learns when the deformed path is better (paper, Figure 3, DRP).

The gain of the deformed path, the IoU of its mask minus that of SAM's own mask, is known in training. It is measured
once for many prompts with all weights fixed; then the routing learns from these figures alone, in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from stable_sam.modeling.bases.base import BaseSam
from stable_sam.modeling.plugin import StableSamPlugin
from stable_sam.training.cached_batches import EmbeddedBatch
from stable_sam.training.loop import Figures
from stable_sam.training.rts import drawn_prompts, quality_loss, routing_loss
from stable_sam.training.training_config import PluginTraining

log = logging.getLogger(__name__)

STEPS, ROWS = 300, 128
"""Number of optimiser steps, and of prompts in each."""
RATE, DECAY = 3e-3, 0.01
"""Learning rate and weight decay of AdamW."""
HELD_OUT = 5
"""One prompt in this many is held out: the routing does not learn from it, and the figures are measured on it."""
ACCURATE = 0.99
"""Quality (IoU with the tight box) above which a box counts as accurate."""


def teach_routing(
    sam: BaseSam, plugin: StableSamPlugin, config: PluginTraining, batches: Iterable[EmbeddedBatch]
) -> Figures:
    """Teach the routing of `plugin`, which `sam` hosts, the gains of the prompts of `batches`; nothing else changes.

    Returns mean gains of the held-out prompts, whose images the routing has seen: `gain` when all take the deformed
    path, `routed_gain` as routed, `best_gain` with perfect routing, and `accurate_routed_gain`, ideally 0, as routed
    for accurate boxes alone.
    """
    known, gain, quality = _measured(sam, plugin, config, batches)
    routing = plugin.routing
    assert routing is not None, "expected a plugin with routing"
    mean, std = known.mean(0), known.std(0) + 1e-6
    known = (known - mean) / std
    _scale_input(routing.reduce, std, mean)
    held_out = torch.arange(len(gain)) % HELD_OUT == 0
    learnt = torch.nonzero(~held_out)[:, 0]
    taught = [routing.reduce, routing.norm, routing.route, *([routing.quality] if routing.quality is not None else [])]
    optimizer = torch.optim.AdamW([p for part in taught for p in part.parameters()], lr=RATE, weight_decay=DECAY)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(STEPS):
        rows = learnt[torch.randint(len(learnt), (ROWS,), generator=generator)].to(gain.device)
        alpha, estimated = routing.judge(known[rows])
        loss = routing_loss(alpha[:, 0], gain[rows])
        if estimated is not None:
            loss = loss + config.quality_weight * quality_loss(estimated, quality[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        opened = routing.judge(known[held_out])[0][:, 0] >= plugin.regular_below
    _scale_input(routing.reduce, 1 / std, -mean / std)
    gain, accurate = gain[held_out], quality[held_out] > ACCURATE
    routed = torch.where(opened, gain, 0)
    figures = {
        "gain": gain.mean().item(), "routed_gain": routed.mean().item(),
        "best_gain": gain.clamp_min(0).mean().item(),
    }  # fmt: skip
    if accurate.any():
        figures["accurate_routed_gain"] = routed[accurate].mean().item()
    log.info("routing: %s", " ".join(f"{name}={value:.4f}" for name, value in figures.items()))
    return figures


@torch.no_grad()
def _measured(
    sam: BaseSam, plugin: StableSamPlugin, config: PluginTraining, batches: Iterable[EmbeddedBatch]
) -> tuple[Tensor, Tensor, Tensor]:
    """Measure N prompts of `batches`: the routing's input (N, C), the gain (N,) and the quality (N,)."""
    assert plugin.routing is not None, "expected a plugin with routing"
    kept: list[Tensor] = []
    handle = plugin.routing.reduce.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    gains, qualities = [], []
    try:
        for number, batch in enumerate(batches):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
            for prompts in drawn_prompts(sam, config, batch, generator):
                gains.append(prompts.gain(sam, prompts.decode(sam)))
                qualities.append(prompts.quality)
    finally:
        handle.remove()
    return torch.cat(kept), torch.cat(gains), torch.cat(qualities)


@torch.no_grad()
def _scale_input(layer: torch.nn.Linear, scale: Tensor, shift: Tensor) -> None:
    """Change `layer` so that it maps x to what it mapped x * scale + shift to."""
    layer.bias.add_(layer.weight @ shift)
    layer.weight *= scale
