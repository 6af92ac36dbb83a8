"""On a GPU: the masks of a CPU, whatever the arithmetic and compiled or not. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stable_sam.config import RefinerConfig
from stable_sam.modeling.bases.tiny import build_tiny
from stable_sam.modeling.fast import encoder
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.predict import PromptArrays, embed_image, predict
from stable_sam.refining.refiner import Refiner
from stable_sam.rle import decode_mask

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none here"),
    # What torch's compiler says of a GPU, "TensorFloat32 is not enabled" for one, is advice.
    pytest.mark.filterwarnings("default"),
]

HW = (240, 320)
BOXES = [(20.0 + 8 * n, 10.0 + 5 * n, 180.0 + 10 * n, 150.0 + 6 * n) for n in range(11)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pixels() -> NDArray[np.uint8]:
    from skimage import data

    return np.asarray(data.chelsea())[: HW[0], : HW[1]]


def prompts() -> list[Prompt]:
    boxes = [Prompt(prompt_id=f"b{n}", image_id="i", image_uri="", box_xyxy=box) for n, box in enumerate(BOXES)]
    points = [
        Prompt(prompt_id=f"p{n}", image_id="i", image_uri="", points_xy=((60.0 + 30 * n, 90.0),), point_labels=(1,))
        for n in range(3)
    ]
    both = [replace(boxes[2], prompt_id="both", points_xy=((120.0, 90.0),), point_labels=(1,))]
    return boxes + points + both


def overlap(one: RefinedMask, other: RefinedMask) -> float:
    masks = [decode_mask(HW, str(mask.mask_counts)) for mask in (one, other)]
    union = np.count_nonzero(masks[0] | masks[1])
    return np.count_nonzero(masks[0] & masks[1]) / union if union else 1.0


@pytest.mark.parametrize(
    ("settings", "least", "scores"),
    [
        ({}, 0.99, 1e-3),
        ({"compile": True}, 0.99, 1e-3),
        ({"dtype": "bfloat16"}, 0.9, 0.05),
        ({"dtype": "bfloat16", "compile": True}, 0.9, 0.05),
    ],
    ids=["float32", "float32 compiled", "bfloat16", "bfloat16 compiled"],
)
def test_nano_masks_are_those_of_a_cpu(settings: dict[str, object], least: float, scores: float) -> None:
    """Twice: CUDA graphs are replayed, not recorded, the second time."""
    ours, cpu = (Refiner(RefinerConfig(device=device, **more)) for device, more in (("cuda", settings), ("cpu", {})))
    expected = cpu.refine_image(pixels(), prompts())
    ours.refine_image(pixels()[::-1], prompts())
    masks = ours.refine_image(pixels(), prompts())
    assert [mask.status for mask in masks] == ["ok"] * len(expected)
    for mask, other in zip(masks, expected, strict=True):
        assert overlap(mask, other) > least
        assert mask.predicted_iou == pytest.approx(other.predicted_iou, abs=scores)
        assert mask.prompt_stability == pytest.approx(other.prompt_stability, abs=scores)
        assert mask.dsp_weight == pytest.approx(other.dsp_weight, abs=scores)


def test_answers_of_compiled_passes_stay_as_they_were() -> None:
    model = Refiner(RefinerConfig(device="cuda", compile=True)).model
    arrays = PromptArrays(boxes_xyxy=np.array(BOXES))
    views = [embed_image(model, image) for image in (pixels(), pixels()[::-1])]
    first = predict(model, views[0], arrays, 64)
    predict(model, views[1], arrays, 64)
    np.testing.assert_array_equal(predict(model, views[0], arrays, 64).logits, first.logits)
    assert not torch.equal(views[0].features.embedding, views[1].features.embedding)


@pytest.mark.parametrize("window", [14, 0], ids=["windows", "global"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_the_vision_transformer_is_sams_through_a_fused_kernel(half: bool, window: int) -> None:
    """A layer of vit_b at 1024 pixels; without a fused kernel that takes it, torch raises."""
    torch.manual_seed(0)
    sam = build_tiny()
    sam.image_encoder = ImageEncoderViT(
        depth=1, embed_dim=768, num_heads=12, out_chans=32, use_rel_pos=True, window_size=14,
        global_attn_indexes=() if window else (0,),
    ).eval().cuda()  # fmt: skip
    for table in (sam.image_encoder.blocks[0].attn.rel_pos_h, sam.image_encoder.blocks[0].attn.rel_pos_w):
        nn.init.normal_(table, std=0.2)
    images = torch.randn(1, 3, 1024, 1024, device="cuda")
    kernel = SDPBackend.FLASH_ATTENTION if half else SDPBackend.EFFICIENT_ATTENTION
    with torch.no_grad():
        expected = sam.image_encoder(images)
        with torch.autocast("cuda", torch.bfloat16, enabled=half), sdpa_kernel(kernel):
            ours = encoder.encode(sam, images).float()
    torch.testing.assert_close(ours, expected, rtol=0, atol=(0.05 if half else 1e-3) * expected.abs().max().item())
