"""SAM 2.1 on images (Ravi et al. 2024): `sam2.1_t`, `sam2.1_s`, `sam2.1_b+` and `sam2.1_l`.

Its prompt encoder is segment_anything's, its mask decoder segment_anything's with eleven more tensors, and its trunk
timm's Hiera. The parts that only videos need, a memory of earlier frames, are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from stable_sam.errors import WeightsError
from stable_sam.modeling.bases.base import BaseSam, Points
from stable_sam.modeling.bases.parts import sam_parts
from stable_sam.modeling.bases.sam2_encoder import HieraEncoder, HieraSize
from stable_sam.modeling.features import ImageFeatures
from stable_sam.modeling.weights import check_tensors, read_checkpoint

SIDE = 1024
"""Side of the square input in pixels."""
SIZES = {
    "sam2.1_t": HieraSize(blocks=(1, 2, 7, 2), global_blocks=(5, 7, 9)),
    "sam2.1_s": HieraSize(blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "sam2.1_b+": HieraSize(
        channels=112, heads=2, blocks=(2, 3, 16, 3), global_blocks=(12, 16, 20), background=14
    ),
    "sam2.1_l": HieraSize(
        channels=144, heads=2, blocks=(2, 6, 36, 4), global_blocks=(23, 33, 43), windows=(8, 4, 16, 8)
    ),
}  # fmt: skip
VIDEO_TENSORS = (
    "mask_downsample.", "maskmem_tpos_enc", "memory_attention.", "memory_encoder.", "no_mem_pos_enc",
    "no_obj_embed_spatial", "no_obj_ptr", "obj_ptr_proj.", "obj_ptr_tpos_proj.",
)  # fmt: skip
"""Beginnings of the names of those tensors of a published file that only videos need."""
NEW_IN_2_1 = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.")
"""Those of them that SAM 2.0 does not have. The tensors for images have the same names and shapes in both."""
PUBLISHED_NAMES = (
    ("prompt_encoder.", "sam_prompt_encoder."),
    ("mask_decoder.", "sam_mask_decoder."),
    (".mlp.fc1.", ".mlp.layers.0."),
    (".mlp.fc2.", ".mlp.layers.1."),
    (".mlp.lin1.", ".mlp.layers.0."),
    (".mlp.lin2.", ".mlp.layers.1."),
)
"""Parts of the names of tensors here, and in the published files."""


class Sam2MaskDecoder(MaskDecoder):  # type: ignore[misc]  # segment_anything has no types
    """SAM's mask decoder with a token and a head for the object's presence, which images do not need, and with the
    layers that make fine features."""

    def __init__(self, *, transformer_dim: int, transformer: nn.Module) -> None:
        super().__init__(transformer_dim=transformer_dim, transformer=transformer)
        self.obj_score_token = nn.Embedding(1, transformer_dim)
        self.pred_obj_score_head = MLP(transformer_dim, transformer_dim, 1, 3)
        self.conv_s0 = nn.Conv2d(transformer_dim, transformer_dim // 8, 1)
        self.conv_s1 = nn.Conv2d(transformer_dim, transformer_dim // 4, 1)


class Sam2(BaseSam):
    """SAM 2.1 without its memory. HQ-SAM 2 differs from HQ-SAM, so `hq_uri` is refused."""

    iou_token = 1
    least_stability = 0.98

    def __init__(self, image_encoder: HieraEncoder, *parts: nn.Module) -> None:
        super().__init__(image_encoder, *parts)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, self.prompt_encoder.embed_dim))
        """Added to the embedding of an image, which has no earlier frames."""

    def features(self, images: Tensor) -> ImageFeatures:
        """Compute the embedding and the fine features."""
        stride4, stride8, stride16 = self.image_encoder(images)
        fine = self.mask_decoder.conv_s0(stride4), self.mask_decoder.conv_s1(stride8)
        return ImageFeatures(stride16 + self.no_mem_embed.view(1, -1, 1, 1), fine)

    @property
    def output_tokens(self) -> Tensor:
        """The decoder's output tokens (6, C): the one of the object's presence, and then SAM's."""
        return torch.cat((self.mask_decoder.obj_score_token.weight, super().output_tokens))

    def padded_points(self, boxes: Tensor | None, points: Points | None) -> Points | None:
        """Append to prompts with a box the padding point that SAM adds to those without one."""
        if boxes is None:
            return points
        if points is None:
            return boxes.new_zeros(len(boxes), 1, 2), torch.full((len(boxes), 1), -1, device=boxes.device)
        return F.pad(points[0], (0, 0, 0, 1)), F.pad(points[1], (0, 1), value=-1)

    def predicted_iou(self, token: Tensor) -> Tensor:
        """Return the predicted IoU (P, 4), which a sigmoid keeps between 0 and 1."""
        return super().predicted_iou(token).sigmoid()


def build(name: str) -> BaseSam:
    """Build one of `SIZES`."""
    return build_sam2(SIZES[name])


def build_sam2(size: HieraSize, side: int = SIDE, *, channels: int = 256, mlp_dim: int = 2048, heads: int = 8) -> Sam2:
    """Build an untrained SAM 2.1 with this trunk for a square input of `side` pixels; the defaults are those of all
    published sizes."""
    parts = sam_parts(side, channels=channels, mlp_dim=mlp_dim, heads=heads, decoder=Sam2MaskDecoder)
    sam: Sam2 = Sam2(HieraEncoder(size, side, channels), *parts).eval()
    return sam


def load(name: str, data: bytes, file: str) -> BaseSam:
    """Load a published file (.pt), without what only videos need; raises `WeightsError` also for one of SAM 2.0."""
    sam = build(name)
    stored = read_checkpoint(data, file)
    tensors = {key: value for key, value in stored.items() if not key.startswith(VIDEO_TENSORS)}
    own = sam.state_dict()
    published = {published_name(key): key for key in own}
    check_tensors({theirs: own[ours] for theirs, ours in published.items()}, tensors, file, name)
    if not all(any(key.startswith(new) for key in stored) for new in NEW_IN_2_1):
        raise WeightsError(
            f"{file}: expected the weights of {name}, got a file without {' and '.join(NEW_IN_2_1)}*, as those of "
            "SAM 2.0 are: use a file of SAM 2.1"
        )
    sam.load_state_dict({published[key]: value for key, value in tensors.items()})
    return sam


def published_name(key: str) -> str:
    """Return the name that the published files give to the tensor `key` of `Sam2`."""
    for ours, theirs in PUBLISHED_NAMES:
        key = key.replace(ours, theirs)
    return key
