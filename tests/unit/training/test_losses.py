"""Losses on masks that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stable_sam.modeling.decoder import DecoderOutput
from stable_sam.training.losses import mask_iou, mask_loss, near_cells
from stable_sam.training.train_base import multimask_loss


def test_a_perfect_mask_costs_almost_nothing_and_errors_cost_more():
    coverage = torch.zeros(1, 16, 16)
    coverage[0, 4:10, 5:12] = 1
    near = near_cells(torch.tensor([[20.0, 16.0, 48.0, 40.0]]), 16, 4)
    costs = []
    for wrong in (0, 4, 16, 80, 256):
        logits = (coverage * 2 - 1) * 20
        logits.view(-1)[torch.randperm(256, generator=torch.Generator().manual_seed(0))[:wrong]] *= -1
        costs.append(mask_loss(logits, coverage, near).item())
    assert costs[0] == pytest.approx(0, abs=1e-4)
    assert costs == sorted(costs)
    assert costs[1] > 0.1


def test_small_and_large_objects_weigh_the_same():
    """Missing all of an object costs about as much for 2 x 2 cells as for 12 x 12."""
    costs = []
    for side in (2, 12):
        coverage = torch.zeros(1, 16, 16)
        coverage[0, 2 : 2 + side, 2 : 2 + side] = 1
        near = coverage.clone()
        costs.append(mask_loss(torch.full((1, 16, 16), -3.0), coverage, near).item())
    assert costs[0] == pytest.approx(costs[1], rel=0.1)


def test_mask_loss_takes_several_masks_of_one_object():
    generator = torch.Generator().manual_seed(0)
    logits, coverage = torch.randn(2, 3, 8, 8, generator=generator), torch.rand(2, 8, 8, generator=generator)
    near = (torch.rand(2, 8, 8, generator=generator) > 0.5).float()
    together = mask_loss(logits, coverage[:, None], near[:, None])
    assert together.shape == (2, 3)
    for prompt in range(2):
        for mask in range(3):
            alone = mask_loss(logits[prompt, mask], coverage[prompt], near[prompt])
            torch.testing.assert_close(together[prompt, mask], alone)


def test_only_the_best_of_three_masks_learns():
    coverage = torch.zeros(1, 8, 8)
    coverage[0, 2:6, 2:6] = 1
    logits = torch.stack([coverage * 2 - 1, 1 - coverage * 2, coverage * 8 - 4, coverage * 0 - 1], dim=1)
    logits.requires_grad_(True)
    output = DecoderOutput(logits, torch.tensor([[0.0, 0.9, 0.2, 0.1]]), None)
    loss, chosen_iou, best_iou = multimask_loss(output, coverage, torch.ones(1, 8, 8))
    loss.backward()
    assert (chosen_iou, best_iou) == (0.0, 1.0)
    assert [bool(grad.abs().sum() > 0) for grad in logits.grad[0]] == [False, False, True, False]


def test_near_cells_against_a_loop():
    boxes = torch.tensor(
        [[[20.0, 16.0, 48.0, 40.0], [0.0, 0.0, 64.0, 64.0]], [[33.0, 5.0, 35.5, 9.0], [60.0, 1, 64, 3]]]
    )
    near = near_cells(boxes, 16, 4)
    assert near.shape == (2, 2, 16, 16)
    for index in np.ndindex(2, 2):
        x0, y0, x1, y1 = (value / 4 for value in boxes[index].tolist())
        more_x, more_y = (x1 - x0) * 0.25 + 1, (y1 - y0) * 0.25 + 1
        expected = [
            [float(x0 - more_x <= x + 0.5 <= x1 + more_x and y0 - more_y <= y + 0.5 <= y1 + more_y) for x in range(16)]
            for y in range(16)
        ]
        assert near[index].tolist() == expected
    assert 0 < near[0, 0].sum() < 256


def test_mask_iou():
    coverage = torch.tensor([[1.0, 0.6, 0.4, 0.0]]).view(1, 1, 4)
    assert mask_iou(torch.tensor([[[1.0, 2, -1, -1]]]), coverage).tolist() == [1.0]
    assert mask_iou(torch.tensor([[[1.0, -1, 5, -1]]]), coverage).tolist() == pytest.approx([1 / 3])
    assert mask_iou(torch.tensor([[[-1.0, -1, -1, -1]]]), torch.zeros(1, 1, 4)).tolist() == [0.0]
