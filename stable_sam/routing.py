"""accept | review | reject: what becomes of a mask, from its scores alone.

The other routing, inside the model, is `modeling.dynamic_routing`.
"""

from __future__ import annotations

from dataclasses import replace

from stable_sam.config import RoutingConfig
from stable_sam.records import RefinedMask, Route


def routed(mask: RefinedMask, config: RoutingConfig) -> RefinedMask:
    """`mask` with its `route` and `route_reason`."""
    chosen, reason = route(mask, config)
    return replace(mask, route=chosen, route_reason=reason)


def route(mask: RefinedMask, config: RoutingConfig) -> tuple[Route, str]:
    """Where the mask goes and every criterion that says so.

    A failed prompt or an empty mask is rejected, then a mask below a reject threshold; a mask that passes all accept
    thresholds is accepted; the rest is for review. A score that was not computed (None) decides nothing.
    """
    if mask.status == "failed":
        return "reject", f"failed: {mask.error}"
    if not mask.area:
        return "reject", "empty mask"
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
    """The row of a prompt that could not be refined, routed to reject."""
    failed = RefinedMask(prompt_id=prompt_id, status="failed", error=error)
    return routed(failed, RoutingConfig())


def _below(*scores: tuple[str, float | None, float]) -> list[str]:
    return [f"{name} {value:.3f} < {limit:g}" for name, value, limit in scores if value is not None and value < limit]
