"""The published SAM and HQ-SAM checkpoints: their key sets, strict loading by URI, and the numbers of `SamPredictor`.

The files themselves are not here. Random tensors stand for theirs: under the same names, in the same shapes and in the
same format, which tests/golden/sam_checkpoints.json records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from stable_sam.config import RefinerConfig
from stable_sam.errors import WeightsError
from stable_sam.modeling.bases import build_base
from stable_sam.modeling.bases.parts import sam_parts
from stable_sam.modeling.bases.sam import VitSam
from stable_sam.modeling.hq import build_hq
from stable_sam.modeling.load import LoadedModel, load_model
from stable_sam.refining.predict import PromptArrays, embed_image, predict
from stable_sam.storage.files import write_bytes
from stable_sam.storage.uris import join

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/sam_checkpoints.json").read_text())
HQ_PARTS = ("hf_token", "hf_mlp", "compress_vit_feat", "embedding_encoder", "embedding_maskfeature")
MODELS = ("vit_b", "vit_l", "vit_h")

Shapes = dict[str, tuple[int, ...]]


def published_shapes(model: str, *, hq: bool = False) -> Shapes:
    """Names and shapes of the tensors of `sam_vit_*.pth`, or of `sam_hq_vit_*.pth`."""
    own = GOLDEN[model]
    shapes = GOLDEN["all"] | own["tensors"]
    for index in range(own["blocks"]):
        block = own["windowed_block"] | (own["global_block"] if index in own["global_blocks"] else {})
        shapes |= {f"image_encoder.blocks.{index}.{name}": shape for name, shape in block.items()}
    return {name: tuple(shape) for name, shape in shapes.items() if hq or not is_hq(name)}


def is_hq(name: str) -> bool:
    return name.startswith(tuple(f"mask_decoder.{part}." for part in HQ_PARTS))


def shapes_of(state: dict[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize("model", MODELS)
def test_models_have_exactly_the_published_tensors(model):
    with torch.device("meta"):
        sam = build_base(model)
        branch = build_hq(sam)
    assert shapes_of(sam.state_dict()) == published_shapes(model)
    hq = {f"mask_decoder.{name}": value for name, value in branch.state_dict().items()}
    assert shapes_of(sam.state_dict() | hq) == published_shapes(model, hq=True)


@pytest.mark.parametrize("file", GOLDEN["published_bytes"])
def test_the_recorded_tensors_fill_the_published_files(file):
    """A file is its float32 values and, in this format, 314 to 318 bytes of names for each tensor."""
    model = next(name for name in MODELS if name in file)
    shapes = published_shapes(model, hq="hq" in file)
    rest = GOLDEN["published_bytes"][file] - 4 * sum(map(prod, shapes.values()))
    assert 314 < rest / len(shapes) < 318


def test_vit_b_and_its_hq_sam_load_at_their_real_size(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.empty(shape).uniform_(-0.05, 0.05, generator=generator)
        for name, shape in published_shapes("vit_b", hq=True).items()
    }
    hq_file = save_checkpoint(state, tmp_path / "sam_hq_vit_b.pth")
    base_file = save_checkpoint({n: v for n, v in state.items() if not is_hq(n)}, tmp_path / "sam_vit_b.pth")
    assert abs(base_file.stat().st_size - GOLDEN["published_bytes"]["sam_vit_b_01ec64.pth"]) < 10_000
    loaded = load_vit_b(base_file.as_uri(), hq_file.as_uri())
    base_file.unlink()
    hq_file.unlink()
    assert loaded.hq is not None
    found = loaded.sam.state_dict()
    expected = {f"hq.{n.removeprefix('mask_decoder.')}" if is_hq(n) else n: value for n, value in state.items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# A small ViT of segment_anything's classes, read as vit_b is


def build_small_vit() -> VitSam:
    encoder = ImageEncoderViT(
        img_size=256, embed_dim=32, depth=3, num_heads=2, out_chans=256, qkv_bias=True, use_rel_pos=True,
        window_size=6, global_attn_indexes=(1, 2),
    )  # fmt: skip
    sam: VitSam = VitSam(encoder, *sam_parts(256)).eval()
    return sam


@pytest.fixture
def small_vit(monkeypatch) -> dict[str, Tensor]:
    """`vit_b` without its 360 MB: the registry's entry is exchanged, its reading of files is not. Random weights."""
    monkeypatch.setitem(sam_model_registry, "vit_b", lambda checkpoint: build_small_vit())
    return random_state(build_small_vit())


def random_state(module: nn.Module) -> dict[str, Tensor]:
    """As initialised, with the positions, which start at 0, random too."""
    generator = torch.Generator().manual_seed(0)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    for name in state:
        if "pos_embed" in name or "rel_pos" in name:
            state[name] = torch.randn(state[name].shape, generator=generator) * 0.1
    return state


def with_branch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole HQ-SAM file of the small ViT."""
    torch.manual_seed(1)
    return state | {f"mask_decoder.{name}": value for name, value in build_hq(build_small_vit()).state_dict().items()}


def save_checkpoint(state: dict[str, Tensor], file: Path) -> Path:
    torch.save(state, file)
    return file


def load_vit_b(checkpoint_uri: str, hq_uri: str | None = None) -> LoadedModel:
    return load_model(RefinerConfig(model="vit_b", checkpoint_uri=checkpoint_uri, hq_uri=hq_uri, device="cpu"))


def test_checkpoints_load_by_uri_and_their_hash_is_recorded(small_vit, tmp_path, s3):
    sam_file = save_checkpoint(small_vit, tmp_path / "sam_vit_b.pth")
    hq_file = save_checkpoint(with_branch(small_vit), tmp_path / "sam_hq_vit_b.pth")
    base, hq = join(s3, "checkpoints/sam_vit_b.pth"), join(s3, "checkpoints/sam_hq_vit_b.pth")
    write_bytes(base, sam_file.read_bytes())
    write_bytes(hq, hq_file.read_bytes())
    for base_uri, hq_uri in ((base, hq), (sam_file.as_uri(), hq_file.as_uri())):
        loaded = load_vit_b(base_uri, hq_uri)
        state = loaded.sam.state_dict()
        assert all(torch.equal(state[name], value) for name, value in small_vit.items())
        assert loaded.hq is not None
        stored = with_branch(small_vit)
        branch = loaded.hq.state_dict()
        assert all(torch.equal(value, stored[f"mask_decoder.{name}"]) for name, value in branch.items())
        assert loaded.identity.model_id == "vit_b+hq"
        both = hashlib.sha256(sam_file.read_bytes() + hq_file.read_bytes()).hexdigest()
        assert loaded.identity.weights_sha256 == both
    plain = load_vit_b(base)
    assert plain.hq is None
    assert plain.identity.weights_sha256 == hashlib.sha256(sam_file.read_bytes()).hexdigest()


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__delitem__(name)


def change(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("mask_decoder.hf_token.weight"), r"HQ-SAM for vit_b, got 1 missing \(hf_token\.weight\)"),
        (drop("mask_decoder.iou_token.weight"), r"HQ-SAM on .*sam\.pth, got 1 missing \(mask_decoder\.iou_token"),
        (change("mask_decoder.hf_token.weight", torch.zeros(2, 256)), r"got 1 mis-shaped .* instead of \(1, 256\)"),
        (change("mask_decoder.hf_other", torch.zeros(1)), r"got 1 unknown \(mask_decoder\.hf_other\)"),
        (
            change("mask_decoder.iou_token.weight", torch.zeros(1, 256)),
            r"HQ-SAM on the base .*sam\.pth, got another base: 1 of \d+ tensors differ \(mask_decoder\.iou_token",
        ),
    ],
    ids=["no token", "no part of SAM", "shape", "unknown", "another base"],
)
def test_an_hq_file_that_does_not_fit_is_refused_in_one_line(small_vit, tmp_path, spoil, message):
    base = save_checkpoint(small_vit, tmp_path / "sam.pth")
    state = with_branch(small_vit)
    spoil(state)
    hq = save_checkpoint(state, tmp_path / "hq.pth")
    with pytest.raises(WeightsError, match=r"hq\.pth: expected .*" + message) as raised:
        load_vit_b(str(base), str(hq))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated", b"\x10\0\0\0\0\0\0\0{broken"])
def test_an_unreadable_hq_file_is_refused_in_one_line(small_vit, tmp_path, content):
    base = save_checkpoint(small_vit, tmp_path / "sam.pth")
    (tmp_path / "hq.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"hq\.pth: expected a") as raised:
        load_vit_b(str(base), str(tmp_path / "hq.pth"))
    assert "\n" not in str(raised.value)


# The numbers of SamPredictor

SAME_INPUT_TOLERANCE = 1e-4
"""Of the logits' standard deviation: OpenCV's resize of the logits and torch's differ by rounding."""
RESIZED_TOLERANCE = 0.1
"""As above, when the picture is resized: torch's antialiased resize and Pillow's differ by at most one grey level,
which a random network, whose masks hang on every pixel, amplifies."""


@pytest.mark.parametrize("size_hw", [(256, 180), (200, 300), (700, 450)], ids=str)
def test_masks_are_those_of_sam_predictor(small_vit, tmp_path, size_hw):
    model = load_vit_b(save_checkpoint(small_vit, tmp_path / "sam.pth").as_uri())
    tolerance = SAME_INPUT_TOLERANCE if max(size_hw) == 256 else RESIZED_TOLERANCE
    assert_same_answers(model, photograph(size_hw), tolerance)


def assert_same_answers(model: LoadedModel, pixels: NDArray[np.uint8], tolerance: float) -> None:
    predictor = SamPredictor(model.sam)
    predictor.set_image(pixels)
    for found, expected in answers(model, predictor, pixels):
        assert found.shape == expected.shape == pixels.shape[:2]
        assert np.abs(found - expected).max() < tolerance * expected.std()


def photograph(size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Something smooth with grain, as photographs are."""
    noise = np.random.default_rng(0)
    coarse = torch.from_numpy(noise.uniform(0, 255, (1, 3, 6, 8)))
    smooth = nn.functional.interpolate(coarse, size_hw, mode="bicubic")[0].permute(1, 2, 0).numpy()
    return np.clip(smooth + noise.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def answers(
    model: LoadedModel, predictor: SamPredictor, pixels: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Logits (H, W) of this project and of `SamPredictor` for a box, one point (the best of three masks), three points
    and a box with a point."""
    height, width = pixels.shape[:2]
    box = np.array([0.1 * width, 0.2 * height, 0.7 * width, 0.9 * height])
    points = np.array([[0.3 * width, 0.4 * height], [0.6 * width, 0.5 * height], [0.9 * width, 0.1 * height]])
    labels = np.array([1, 1, 0])
    view = embed_image(model, pixels)
    for with_box, count in ((True, 0), (False, 1), (False, 3), (True, 1)):
        prompts = PromptArrays(
            boxes_xyxy=box[None] if with_box else None,
            points_xy=points[None, :count] if count else None,
            point_labels=labels[None, :count] if count else None,
        )
        found = predict(model, view, prompts, 8)
        masks, ious, _ = predictor.predict(
            point_coords=points[:count] if count else None,
            point_labels=labels[:count] if count else None,
            box=box if with_box else None,
            multimask_output=prompts.ambiguous,
            return_logits=True,
        )
        best = int(ious.argmax())
        np.testing.assert_allclose(found.iou[0], ious[best], atol=1e-3)
        yield view.frame.to_original(found.logits[0]), masks[best]
