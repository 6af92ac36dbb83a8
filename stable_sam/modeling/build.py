"""The registry of models: it maps a name to a function that builds that `segment_anything.modeling.Sam` untrained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from stable_sam.errors import ConfigError
from stable_sam.modeling.nano import NanoImageEncoder, NanoSam

EMBED_DIM = 256
NANO_SIZE = 384


def build_nano(size: int = NANO_SIZE, *, fine: bool = True) -> Sam:
    """Build `nano`: SAM's prompt encoder and mask decoder at their true size behind a small image encoder.

    size: side of the square input in pixels. fine: whether the encoder makes fine features, which version 0.2.0 did
    not have.
    """
    encoder = NanoImageEncoder(size, EMBED_DIM, fine=fine)
    return _build(NanoSam, encoder, size, dim=EMBED_DIM, mlp_dim=2048, heads=8)


def build_tiny(size: int = 64) -> Sam:
    """Build `tiny`: a Sam with random weights of a fixed seed, which builds and runs in milliseconds.

    size: side of the square input in pixels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = _TinyImageEncoder(size, out_channels=32)
        return _build(Sam, encoder, size, dim=32, mlp_dim=64, heads=4)


class _TinyImageEncoder(nn.Module):
    """An image encoder that is one convolution of 16 x 16 pixels at stride 16."""

    def __init__(self, img_size: int, out_channels: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.patches = nn.Conv2d(3, out_channels, 16, stride=16)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.patches(image)  # type: ignore[no-any-return]


def _build(kind: type[Sam], encoder: nn.Module, size: int, *, dim: int, mlp_dim: int, heads: int) -> Sam:
    grid = size // 16
    sam = kind(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=dim, image_embedding_size=(grid, grid), input_image_size=(size, size), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=dim,
            transformer=TwoWayTransformer(depth=2, embedding_dim=dim, num_heads=heads, mlp_dim=mlp_dim),
        ),
    )
    return sam.eval()


MODELS: dict[str, Callable[[], Sam]] = {
    "nano": build_nano,
    "tiny": build_tiny,
    **{name: partial(sam_model_registry[name], checkpoint=None) for name in ("vit_b", "vit_l", "vit_h")},
}


def build_model(name: str) -> Sam:
    """Build an untrained Sam of the named architecture in evaluation mode.

    Raises `ConfigError` for a name that is not in `MODELS`.
    """
    if name not in MODELS:
        raise ConfigError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name]()


def set_input_size(sam: Sam, size: int) -> None:
    """Set the input of a convolutional `sam` (`nano`) to `size` x `size` pixels.

    No weight changes, because SAM's prompt encoder takes positions relative to the input's side. Raises `ConfigError`
    unless `size` is a positive multiple of 32.
    """
    if size <= 0 or size % 32:
        raise ConfigError(f"size: expected a positive multiple of 32 pixels, got {size}")
    sam.image_encoder.img_size = size
    sam.prompt_encoder.input_image_size = (size, size)
    sam.prompt_encoder.image_embedding_size = (size // 16, size // 16)
    sam.prompt_encoder.mask_input_size = (size // 4, size // 4)
