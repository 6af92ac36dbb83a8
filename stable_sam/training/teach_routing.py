"""The last part of a plugin's training: alpha learns when the deformed path is worth taking (paper, Figure 3, DRP).

What the path gains for a prompt, the IoU of its mask less that of SAM's own, is known in training. It is measured once
for many prompts with everything else at rest; then the routing learns from these figures alone, in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from stable_sam.modeling.plugin import StableSamPlugin
from stable_sam.training.cached_batches import EmbeddedBatch
from stable_sam.training.loop import Figures
from stable_sam.training.rts import drawn_prompts, quality_loss, routing_loss
from stable_sam.training.training_config import PluginTraining

log = logging.getLogger(__name__)

STEPS, ROWS = 300, 128
"""Optimiser steps, and prompts in each."""
RATE, DECAY = 3e-3, 0.01
"""AdamW."""
HELD_OUT = 5
"""One of so many prompts is not learnt from, and judges."""
ACCURATE = 0.99
"""Quality from which a box counts as the true one."""


def teach_routing(
    sam: Sam, plugin: StableSamPlugin, settings: PluginTraining, batches: Iterable[EmbeddedBatch]
) -> Figures:
    """Teach the routing of `plugin`, which `sam` hosts, the gains of the prompts of `batches`; nothing else changes.

    Returns the mean gain of the prompts that were held out, which are of the same pictures: if all took the deformed
    path, as routed, and with perfect routing; and the routed gain of accurate boxes alone, which ought to be 0.
    """
    known, gain, quality = _measured(sam, plugin, settings, batches)
    routing = plugin.routing
    assert routing is not None, "without routing there is nothing to teach"
    mean, std = known.mean(0), known.std(0) + 1e-6
    known = (known - mean) / std
    _scale_input(routing.reduce, std, mean)
    held_out = torch.arange(len(gain)) % HELD_OUT == 0
    learnt = torch.nonzero(~held_out)[:, 0]
    taught = [routing.reduce, routing.norm, routing.route, *([routing.quality] if routing.quality is not None else [])]
    optimizer = torch.optim.AdamW([p for part in taught for p in part.parameters()], lr=RATE, weight_decay=DECAY)
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(STEPS):
        rows = learnt[torch.randint(len(learnt), (ROWS,), generator=generator)].to(gain.device)
        alpha, estimated = routing.judge(known[rows])
        loss = routing_loss(alpha[:, 0], gain[rows])
        if estimated is not None:
            loss = loss + settings.quality_weight * quality_loss(estimated, quality[rows])
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
    sam: Sam, plugin: StableSamPlugin, settings: PluginTraining, batches: Iterable[EmbeddedBatch]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of all prompts: what the routing knows (N, C), the gain (N,) and the quality (N,)."""
    assert plugin.routing is not None, "without routing there is nothing to teach"
    kept: list[Tensor] = []
    handle = plugin.routing.reduce.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    gains, qualities = [], []
    try:
        for number, batch in enumerate(batches):
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
            for prompts in drawn_prompts(sam, settings, batch, generator):
                gains.append(prompts.gain(sam, prompts.decode(sam)))
                qualities.append(prompts.quality)
    finally:
        handle.remove()
    return torch.cat(kept), torch.cat(gains), torch.cat(qualities)


@torch.no_grad()
def _scale_input(layer: torch.nn.Linear, scale: Tensor, shift: Tensor) -> None:
    """Let `layer` give for x what it gave for x * scale + shift."""
    layer.bias.add_(layer.weight @ shift)
    layer.weight *= scale
