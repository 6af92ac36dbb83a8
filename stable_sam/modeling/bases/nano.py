"""`nano`: SAM behind a small convolutional image encoder, trained by this project and bundled with it."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torchvision.models import shufflenet_v2_x1_0

from stable_sam.errors import ConfigError, WeightsError
from stable_sam.modeling.bases.base import EMBEDDING_STRIDE, MASK_STRIDE, BaseSam, EarlyLayer, Points
from stable_sam.modeling.bases.parts import sam_parts
from stable_sam.modeling.features import FineFeatures, ImageFeatures
from stable_sam.modeling.weights import load_strictly, read_safetensors

NANO_SIDE = 384
"""Side of the square input in pixels, unless the metadata of the weights name another one."""
EMBED_DIM = 256
SPOT_SIGMA = 8.0
"""Standard deviation of a drawn point in input pixels: half a cell of the image embedding."""
STAGE_CHANNELS = (24, 116, 232, 464)
"""Channels of the backbone's outputs at stride 4, 8, 16 and 32."""


class NanoSam(BaseSam):
    """A Sam whose boxes and points enter its prompt encoder twice: as tokens, and drawn as a mask prompt.

    With tokens alone a small base would need far longer training than a CPU allows before its masks lie where their
    prompts are.
    """

    drawn: float = 1.0
    """Share of the prompts that are drawn; the others enter as tokens alone, as in SAM. Inference uses 1 or 0."""
    draws: torch.Generator | None = None
    """Generator that chooses the drawn prompts in training, where `drawn` may lie between 0 and 1."""

    def set_input_side(self, side: int) -> None:
        """Set the side of the square input in pixels.

        No weight changes, because the encoder is convolutional and SAM's prompt encoder takes positions relative to the
        input's side. Raises `ConfigError` unless `side` is a positive multiple of 32.
        """
        if side <= 0 or side % 32:
            raise ConfigError(f"size: expected a positive multiple of 32 pixels, got {side}")
        grid = side // EMBEDDING_STRIDE
        self.image_encoder.img_size = side
        self.prompt_encoder.input_image_size = (side, side)
        self.prompt_encoder.image_embedding_size = (grid, grid)
        self.prompt_encoder.mask_input_size = (side // MASK_STRIDE, side // MASK_STRIDE)

    def features(self, images: Tensor) -> ImageFeatures:
        """Compute the embedding and, if the encoder has them, the fine features."""
        return cast(ImageFeatures, self.image_encoder.features(images))

    @property
    def early_layer(self) -> EarlyLayer:
        """The backbone's stage at stride 8."""
        return EarlyLayer(self.image_encoder.backbone.stage2, STAGE_CHANNELS[1], stride=8)

    def embed_prompts(self, boxes: Tensor | None, points: Points | None) -> tuple[Tensor, Tensor]:
        """Embed the prompts as tokens, and a share `drawn` of them also as drawn mask prompts."""
        masks = self.mask_prompts(boxes, points)
        sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=masks)
        if masks is not None and self.drawn < 1:
            shown = torch.rand(len(dense), 1, 1, 1, generator=self.draws) < self.drawn
            undrawn = self.prompt_encoder.no_mask_embed.weight[:, :, None, None]
            dense = torch.where(shown.to(dense.device), dense, undrawn)
        return sparse, dense

    @property
    def draws_prompts(self) -> bool:
        """Whether the weights were trained with drawn prompts."""
        return self.drawn > 0

    def mask_prompts(self, boxes: Tensor | None, points: Points | None) -> Tensor | None:
        """Draw the prompts as `drawn_prompts` does, unless the weights were trained without."""
        return self.drawn_prompts(boxes, points) if self.draws_prompts else None

    def drawn_prompts(self, boxes: Tensor | None, points: Points | None) -> Tensor:
        """Draw P prompts as mask prompts (P, 1, S/4, S/4) with values from -1 (background) to 1 (object).

        boxes: (P, 4) XYXY, drawn as 1 inside, -1 outside and values between on cells that an edge cuts; without a box
        all cells are 0. points: xy (P, N, 2) and labels (P, N), where 1 is object, 0 background and -1 padding; each
        point is a Gaussian spot laid over the box. Boxes and points are in pixels of the model's square input.
        Raises `ValueError` when neither is given.
        """
        side = self.input_side // MASK_STRIDE
        given = boxes if points is None else points[0]
        if given is None:
            raise ValueError("expected boxes, points or both")
        cells = torch.arange(side, device=given.device, dtype=given.dtype)
        drawn = given.new_zeros(len(given), side, side)
        if boxes is not None:
            low, high = boxes[:, :2, None] / MASK_STRIDE, boxes[:, 2:, None] / MASK_STRIDE
            covered = (torch.minimum(high, cells + 1) - torch.maximum(low, cells)).clamp(0, 1)  # (P, 2, S/4), x then y
            drawn = covered[:, 1, :, None] * covered[:, 0, None, :] * 2 - 1
        if points is not None:
            xy, labels = points
            distance = (cells + 0.5) * MASK_STRIDE - xy[..., None]  # (P, N, 2, S/4)
            spots = torch.exp(-0.5 * (distance / SPOT_SIGMA).square())
            for spot, label in zip(spots.unbind(1), labels.unbind(1), strict=True):
                weight = spot[:, 1, :, None] * spot[:, 0, None, :] * (label >= 0)[:, None, None]
                drawn = drawn + weight * ((label * 2 - 1)[:, None, None] - drawn)
        return drawn[:, None]


class Backbone(nn.Module):
    """ShuffleNetV2 x1.0 with its batch norms folded into the convolutions and LeakyReLU(0.1), as in NanoDet-m."""

    def __init__(self) -> None:
        super().__init__()
        network = shufflenet_v2_x1_0(weights=None)
        _fold(network)
        self.conv1 = network.conv1
        self.maxpool = network.maxpool
        self.stage2 = network.stage2
        self.stage3 = network.stage3
        self.stage4 = network.stage4

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute features at strides 4, 8, 16 and 32, with `STAGE_CHANNELS` channels, of a normalised image
        (B, 3, S, S)."""
        # torch's pooling takes a tenth of the time on channels-last memory; the stages are faster on contiguous memory.
        stride4 = self.maxpool(self.conv1(image.contiguous(memory_format=torch.channels_last))).contiguous()
        stride8 = self.stage2(stride4)
        stride16 = self.stage3(stride8)
        return stride4, stride8, stride16, self.stage4(stride16)


class ChannelNorm(LayerNorm2d):  # type: ignore[misc]  # segment_anything has no types
    """SAM's `LayerNorm2d` computed in one pass over the memory; its result is channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H, W) over its channels; returns (B, C, H, W)."""
        pixels = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return pixels.permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """A residual block, a 3 x 3 convolution, layer norm and a 1 x 1 convolution, that mixes neighbouring cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ChannelNorm(channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the layers' output to x (B, C, H, W); returns (B, C, H, W)."""
        return x + cast(Tensor, self.layers(x))


class NanoImageEncoder(nn.Module):
    """The backbone and a neck that sums its four outputs to SAM's image embedding (B, 256, S/16, S/16)."""

    def __init__(self, img_size: int = 512, out_channels: int = 256, *, fine: bool = True) -> None:
        super().__init__()
        self.img_size = img_size
        """Side S of the square input in pixels; `segment_anything.Sam` reads it by this name."""
        self.backbone = Backbone()
        # Strided convolutions fold the outputs at stride 4 and 8 into the channels of a stride-16 cell. Pooling would
        # lose borders finer than a cell.
        self.lateral4 = _lateral(STAGE_CHANNELS[0], out_channels, stride=4)
        self.lateral8 = _lateral(STAGE_CHANNELS[1], out_channels, stride=2)
        self.lateral16 = _lateral(STAGE_CHANNELS[2], out_channels, stride=1)
        self.lateral32 = _lateral(STAGE_CHANNELS[3], out_channels, stride=1)
        self.blocks = nn.Sequential(ConvBlock(out_channels), ConvBlock(out_channels))
        self.norm = ChannelNorm(out_channels)
        self.fine = FineBranch(out_channels) if fine else None

    def forward(self, image: Tensor) -> Tensor:
        """Compute the embedding (B, out_channels, S/16, S/16) of an image (B, 3, S, S) normalised as SAM's are."""
        return self._embedding(self.backbone(image))

    def features(self, image: Tensor) -> ImageFeatures:
        """Compute the embedding and the fine features, if this encoder has them, of a normalised image
        (B, 3, S, S)."""
        stages = self.backbone(image)
        embedding = self._embedding(stages)
        fine = None if self.fine is None else self.fine(stages[0], stages[1], embedding)
        return ImageFeatures(embedding, fine)

    def _embedding(self, stages: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        stride4, stride8, stride16, stride32 = stages
        coarse = _doubled(self.lateral32(stride32))
        summed = self.lateral4(stride4) + self.lateral8(stride8) + self.lateral16(stride16) + coarse
        return cast(Tensor, self.norm(self.blocks(summed))).contiguous()


class FineBranch(nn.Module):
    """Computes features at stride 4 and 8 for borders and small objects.

    The embedding tells it which object a cell belongs to, the backbone's outputs at stride 4 and 8 where borders run.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, quarter = channels // 4, channels // 8
        self.lateral8 = _lateral(STAGE_CHANNELS[1], half, stride=1)
        self.down16 = nn.Conv2d(channels, half, 1)
        self.block8 = ConvBlock(half)
        self.lateral4 = _lateral(STAGE_CHANNELS[0], quarter, stride=1)
        self.down8 = nn.Conv2d(half, quarter, 1)
        self.block4 = ConvBlock(quarter)
        self.out8, self.out4 = nn.Conv2d(half, half, 1), nn.Conv2d(quarter, quarter, 1)
        for layer in (self.out8, self.out4):  # before training the fine features are 0, as if there were none
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # torch types bias as optional

    def forward(self, stride4: Tensor, stride8: Tensor, embedding: Tensor) -> FineFeatures:
        """Compute the fine features from the backbone's outputs at stride 4 and 8 and the embedding
        (B, C, S/16, S/16)."""
        eight = self.block8(self.lateral8(stride8) + _doubled(self.down16(embedding)))
        four = self.block4(self.lateral4(stride4) + _doubled(self.down8(eight)))
        return self.out4(four), self.out8(eight)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _lateral(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    # The pretrained features are small (0.02-0.07); the norm brings those of all strides to one scale.
    return nn.Sequential(ChannelNorm(channels), nn.Conv2d(channels, out_channels, stride, stride=stride))


def _fold(module: nn.Module) -> None:
    """Replace batch norms, which are folded into the convolutions, by the identity, and ReLU by LeakyReLU(0.1)."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        elif isinstance(child, nn.ReLU):
            setattr(module, name, nn.LeakyReLU(0.1))
        elif isinstance(child, nn.Conv2d) and child.bias is None:
            folded = nn.Conv2d(
                child.in_channels, child.out_channels, child.kernel_size, child.stride, child.padding,  # type: ignore[arg-type]
                groups=child.groups,
            )  # fmt: skip
            setattr(module, name, folded)
        else:
            _fold(child)


def build_nano(side: int = NANO_SIDE, *, fine: bool = True) -> NanoSam:
    """Build an untrained `nano` for a square input of `side` pixels.

    fine: whether the encoder makes fine features, which version 0.2.0 did not have.
    """
    sam: NanoSam = NanoSam(NanoImageEncoder(side, EMBED_DIM, fine=fine), *sam_parts(side)).eval()
    return sam


def build(name: str) -> BaseSam:
    """Build `nano`, the only base of this family."""
    return build_nano()


def load(name: str, data: bytes, file: str) -> BaseSam:
    """Load `nano` as the metadata of its weights describe it; weights without metadata are of version 0.2.0."""
    tensors, metadata = read_safetensors(data, file)
    sam = build_nano(fine=metadata.get("fine") == "1")
    try:
        sam.set_input_side(int(metadata.get("size", NANO_SIDE)))
        sam.drawn = float(metadata.get("drawn", 1))
    except (ValueError, ConfigError) as error:
        raise WeightsError(f"{file}: metadata: {error}") from None
    load_strictly(sam, tensors, file, name)
    return sam
