from dataclasses import replace

import pytest

from stable_sam.config import RoutingConfig
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.routing import failed_mask, route, routed

PROMPT = Prompt(prompt_id="p1", image_id="i", image_uri="i.jpg", box_xyxy=(0, 0, 5, 5))
GOOD = RefinedMask(
    prompt_id="a",
    status="ok",
    area=100,
    predicted_iou=0.9,
    stability_score=0.95,
    prompt_stability=0.9,
    dsp_weight=0.3,
    box_agreement=0.8,
)
CONFIG = RoutingConfig(
    accept_prompt_stability=0.8,
    accept_predicted_iou=0.7,
    accept_stability_score=0.8,
    accept_box_agreement=0.5,
    accept_dsp_weight=0.6,
    reject_prompt_stability=0.4,
    reject_predicted_iou=0.3,
)


@pytest.mark.parametrize(
    ("changes", "expected", "reason"),
    [
        ({}, "accept", "passes every threshold"),
        ({"prompt_stability": 0.8, "predicted_iou": 0.7, "dsp_weight": 0.6}, "accept", "passes every threshold"),
        ({"prompt_stability": None, "box_agreement": None}, "accept", "passes every threshold"),
        ({"prompt_stability": 0.79}, "review", "prompt_stability 0.790 < 0.8"),
        ({"predicted_iou": 0.5}, "review", "predicted_iou 0.500 < 0.7"),
        ({"stability_score": 0.0}, "review", "stability_score 0.000 < 0.8"),
        ({"box_agreement": 0.1}, "review", "box_agreement 0.100 < 0.5"),
        ({"dsp_weight": 0.61}, "review", "dsp_weight 0.610 > 0.6"),
        ({"prompt_stability": 0.39}, "reject", "prompt_stability 0.390 < 0.4"),
        ({"predicted_iou": -0.1}, "reject", "predicted_iou -0.100 < 0.3"),
        ({"area": 0}, "reject", "empty mask"),
    ],
)
def test_every_criterion_decides_and_is_named(changes, expected, reason):
    assert route(replace(GOOD, **changes), CONFIG) == (expected, reason)


def test_all_reasons_are_given():
    _, reason = route(replace(GOOD, predicted_iou=0.5, box_agreement=0.2), CONFIG)
    assert reason == "predicted_iou 0.500 < 0.7; box_agreement 0.200 < 0.5"


def test_routed_fills_the_record():
    assert routed(PROMPT, GOOD, CONFIG) == replace(GOOD, route="accept", route_reason="passes every threshold")


def test_a_failed_prompt_is_rejected_with_its_error():
    failed = failed_mask("p1", "truncated")
    assert failed == RefinedMask(
        prompt_id="p1", status="failed", error="truncated", route="reject", route_reason="failed: truncated"
    )
