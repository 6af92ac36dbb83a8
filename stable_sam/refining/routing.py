"""Routing of a mask to accept, review or reject, from its scores alone.

The dynamic routing inside the model is another thing: `modeling.dynamic_routing`.
"""

from __future__ import annotations

from dataclasses import replace

from stable_sam.config import RoutingConfig
from stable_sam.config.calibration import Calibration, scores_of
from stable_sam.records import Prompt, RefinedMask, Route


def routed(prompt: Prompt, mask: RefinedMask, config: RoutingConfig) -> RefinedMask:
    """Return the `mask` of `prompt` with its `route` and `route_reason`.

    It also gets its `quality` and `gain_over_box` when `config` has a calibration that holds for it.
    """
    if config.calibration is not None and config.calibration.holds_for(mask):
        scores = scores_of(prompt, mask)
        quality, gain = config.calibration.quality(scores), config.calibration.expected_gain(scores)
        mask = replace(mask, quality=quality, gain_over_box=gain)
    chosen, reason = route(mask, config)
    return replace(mask, route=chosen, route_reason=reason)


def route(mask: RefinedMask, config: RoutingConfig) -> tuple[Route, str]:
    """Return the route of a mask and the reason, which names every criterion that decided it.

    A failed prompt or an empty mask is rejected. Otherwise the calibrated `quality` decides, when the mask has one; a
    mask that it would accept is for review when the mask is not expected to be better than its filled weak box.
    Without a `quality`, a mask below a reject threshold is rejected, one that passes all accept thresholds is accepted,
    and any other is for review; a score that was not computed (None) decides nothing.
    """
    if mask.status == "failed":
        return "reject", f"failed: {mask.error}"
    if not mask.area:
        return "reject", "empty mask"
    if config.calibration is not None and mask.quality is not None:
        return _route_by_quality(mask.quality, mask.gain_over_box, config.calibration)
    rejects = _below(
        ("prompt_stability", mask.prompt_stability, config.reject_prompt_stability),
        ("predicted_iou", mask.predicted_iou, config.reject_predicted_iou),
    )
    if rejects:
        return "reject", "; ".join(rejects)
    doubts = _below(
        ("prompt_stability", mask.prompt_stability, config.accept_prompt_stability),
        ("predicted_iou", mask.predicted_iou, config.accept_predicted_iou),
        ("stability_score", mask.stability_score, config.accept_stability_score),
        ("box_agreement", mask.box_agreement, config.accept_box_agreement),
    )
    if mask.dsp_weight is not None and mask.dsp_weight > config.accept_dsp_weight:
        doubts.append(f"dsp_weight {mask.dsp_weight:.3f} > {config.accept_dsp_weight:g}")
    if doubts:
        return "review", "; ".join(doubts)
    return "accept", "passes every threshold"


def failed_mask(prompt_id: str, error: str) -> RefinedMask:
    """Return the mask record of a prompt that could not be refined; its route is reject."""
    failed = RefinedMask(prompt_id=prompt_id, status="failed", error=error)
    chosen, reason = route(failed, RoutingConfig())
    return replace(failed, route=chosen, route_reason=reason)


def _route_by_quality(quality: float, gain: float | None, calibration: Calibration) -> tuple[Route, str]:
    accept, reject, over_box = calibration.accept, calibration.reject, calibration.gain_over_box
    doubt = ""
    if over_box is not None and gain is not None and gain <= over_box.threshold:
        doubt = f"; the filled box is expected to be as good (gain {gain:.3f} <= {over_box.threshold:.3f})"
    if accept.threshold is not None and quality >= accept.threshold:
        return "review" if doubt else "accept", f"quality {quality:.3f} >= {accept.threshold:.3f}{doubt}"
    if reject.threshold is not None and quality <= reject.threshold:
        return "reject", f"quality {quality:.3f} <= {reject.threshold:.3f}"
    if accept.threshold is None:
        return "review", f"quality {quality:.3f}; no threshold keeps the promise of {accept.precision:.0%}{doubt}"
    return "review", f"quality {quality:.3f} < {accept.threshold:.3f}{doubt}"


def _below(*scores: tuple[str, float | None, float]) -> list[str]:
    return [f"{name} {value:.3f} < {limit:g}" for name, value, limit in scores if value is not None and value < limit]
