"""Large JPEGs decoded at a reduced scale: what the model sees is that of the full decode within a grey level, and all
that is in original pixels stays so."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from skimage import data as pictures

from flows.cli import main
from stable_sam.config import RefinerConfig, RunConfig
from stable_sam.errors import ImageError
from stable_sam.explain.explanation import explain
from stable_sam.images.decode import DecodedImage, decode_for_input, decode_image
from stable_sam.images.frames import Frame
from stable_sam.images.resize import resize_image
from stable_sam.records import Prompt, RefinedMask
from stable_sam.refining.image_job import ImageJob, finish_job, infer_job, prepare_job, refine_job
from stable_sam.refining.refiner import Refiner
from stable_sam.refining.steps import InferredImage, PreparedImage
from stable_sam.rle import decode_mask

SIDE = 64
LIMIT = 100_000_000
TOLERANCE = 1.0
"""Mean absolute difference in grey levels between what the model sees of a reduced and of a full decode, on sharp
photographs; 0.15 to 0.92 measured, 2 to 4 where the picture is squeezed by the last reduced pixel."""


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "JPEG"), **{"quality": 90, **options})
    return buffer.getvalue()


def photograph(width: int, height: int) -> Image.Image:
    """Cut out of one whose detail is as fine as its pixels."""
    return Image.fromarray(np.tile(pictures.astronaut(), (2, 2, 1))[:height, :width])


def decoded(data: bytes, side: int | None = SIDE) -> DecodedImage:
    return decode_for_input(data, name="x", max_pixels=LIMIT, side=side)


def seen(picture: DecodedImage) -> NDArray[np.int16]:
    return resize_image(picture.pixels, Frame(picture.original_hw, SIDE), picture.scale).astype(np.int16)


def difference(data: bytes) -> float:
    reduced, full = decoded(data), decoded(data, None)
    assert reduced.original_hw == full.original_hw == full.pixels.shape[:2]
    assert reduced.scale > 1 == full.scale
    assert reduced.pixels.shape == (*(-(-n // reduced.scale) for n in full.original_hw), 3)
    return float(np.abs(seen(reduced) - seen(full)).mean())


@pytest.mark.parametrize(("longest", "scale"), [(243, 1), (244, 2), (486, 2), (487, 4), (9000, 4)])
def test_at_least_1_9_times_the_models_pixels_are_left(longest: int, scale: int) -> None:
    for size in ((longest, 200), (200, longest), (longest, 1)):
        picture = decoded(jpeg(Image.new("RGB", size)))
        assert picture.original_hw == size[::-1]
        assert picture.scale == (1 if 1 in size else scale)


def test_of_a_picture_to_be_stretched_its_shortest_side_counts() -> None:
    data = jpeg(Image.new("RGB", (900, 250)))
    scales = [
        decode_for_input(data, name="x", max_pixels=LIMIT, side=SIDE, fit=fit).scale for fit in ("pad", "stretch")
    ]
    assert scales == [4, 2]


def test_what_needs_no_reduction_is_unchanged_bit_for_bit() -> None:
    for data in (jpeg(photograph(243, 200)), jpeg(photograph(900, 700), format="PNG")):
        picture = decoded(data)
        assert picture.scale == 1
        np.testing.assert_array_equal(picture.pixels, decode_image(data, name="x", max_pixels=LIMIT))
        np.testing.assert_array_equal(seen(picture), seen(decoded(data, None)))


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 60}, {"format": "MPO", "save_all": True}],
    ids=["baseline", "progressive", "4:4:4", "quality 60", "MPO"],
)
def test_the_model_sees_the_same(options: dict[str, Any]) -> None:
    image = photograph(800, 600)
    if "save_all" in options:
        options = {**options, "append_images": [Image.new("RGB", (800, 600), "red")]}
    assert difference(jpeg(image, **options)) < TOLERANCE


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_in_every_mode(mode: str) -> None:
    assert difference(jpeg(photograph(800, 600).convert(mode))) < TOLERANCE


@pytest.mark.parametrize("size", [(801, 603), (805, 607), (799, 1000), (999, 769), (245, 244)])
def test_of_every_size(size: tuple[int, int]) -> None:
    """The last reduced row and column reach beyond the image: by sizes alone it would be squeezed."""
    assert difference(jpeg(photograph(*size))) < TOLERANCE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_by_its_exif(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for size, scale in (((800, 600), 4), ((800, 602), 4 if orientation == 1 else 2)):
        data = jpeg(photograph(*size), exif=exif)
        assert difference(data) < TOLERANCE
        assert decoded(data).scale == scale
        assert decoded(data).original_hw == (size[::-1] if orientation < 5 else size)
    if orientation > 1:
        assert decoded(jpeg(photograph(801, 603), exif=exif)).scale == 1


@pytest.mark.parametrize("kind_and_value", [struct.pack("<HI4s", 2, 2, b"6"), struct.pack("<HII", 3, 1, 9)])
def test_an_orientation_that_exif_does_not_know_turns_nothing(kind_and_value: bytes) -> None:
    """The text "6", and the number 9."""
    directory = struct.pack("<HH", 1, 0x0112) + kind_and_value + bytes(4)
    picture = decoded(jpeg(photograph(801, 603), exif=b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory))
    assert (picture.original_hw, picture.scale) == ((603, 801), 4)
    assert picture.pixels.shape == (151, 201, 3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_file_is_the_same_error(share: float, progressive: bool) -> None:
    data = jpeg(photograph(800, 600), progressive=progressive)
    data = data[: int(len(data) * share)]
    said = []
    for side in (SIDE, None):
        with pytest.raises(ImageError) as raised:
            decoded(data, side)
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert "damaged" in said[0]


def test_the_limit_counts_the_files_pixels() -> None:
    with pytest.raises(ImageError, match="expected at most 479999 pixels, got 800 x 600 = 480000"):
        decode_for_input(jpeg(photograph(800, 600)), name="x", max_pixels=479_999, side=SIDE)


PEAK = """
import resource, sys
from stable_sam.images.decode import decode_for_input
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = decode_for_input(open(sys.argv[1], "rb").read(), name="x", max_pixels=100_000_000, side=384)
assert (picture.original_hw, picture.scale) == ((10_000, 10_000), 4)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_hundred_megapixels_take_the_memory_of_six(tmp_path: Path) -> None:
    path = tmp_path / "big.jpg"
    Image.new("RGB", (10_000, 10_000), "teal").save(path, quality=50)
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80, "MiB: 18 of the result, 24 of Pillow's own"


CONFIG = RunConfig(refiner=RefinerConfig(model="tiny", jitter_count=3, stability_offset=0.002))
BOXES = [(100.0, 30.0, 700.0, 590.0), (5.0, 300.0, 350.0, 602.0)]


def prompts(**more: Any) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(prompt_id=str(n), image_id="i", image_uri="/i", box_xyxy=box, **more) for n, box in enumerate(BOXES)
    )


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return Refiner(CONFIG.refiner, CONFIG.routing)


def job(data: bytes, **more: Any) -> ImageJob:
    return ImageJob(image_id="i", image_uri="/i", prompts=prompts(**more), data=data)


def test_every_way_in_gives_the_same_masks(refiner: Refiner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(photograph(805, 603))
    masks = refiner.refine_file(data, prompts())
    assert [mask.mask_size for mask in masks] == [(603, 805)] * 2
    assert refine_job(refiner, CONFIG.refiner, job(data)) == masks
    prepared = prepare_job(CONFIG.refiner, refiner.input_side, job(data))
    assert isinstance(prepared, PreparedImage)
    inferred = infer_job(refiner, prepared)
    assert isinstance(inferred, InferredImage)
    assert finish_job(CONFIG, inferred) == masks
    once = Refiner(CONFIG.refiner.model_copy(update={"second_pass": "off"}))
    whole, picture = (decoded(data, side) for side in (None, SIDE))
    explained = explain(once, whole.pixels, prompts()[0], decoded=picture)
    assert explained.stable_sam.refined == once.refine_file(data, prompts()[:1])[0]
    assert explained.pixels.shape == (603, 805, 3)

    photo, out = tmp_path / "photo.jpg", tmp_path / "mask.png"
    photo.write_bytes(data)
    command = ["refine-image", photo, "--model", "tiny", "--out", out, "--prompt-id", "0", "--box", *BOXES[0]]
    monkeypatch.setattr(sys, "argv", ["stable-sam", *map(str, command)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    np.testing.assert_array_equal(np.asarray(Image.open(out)) > 0, mask_of(masks[0]))
    # What the ways have in common is the reduced decode: all pixels give other numbers.
    in_full = refiner.refine_image(whole.pixels, prompts())
    assert [mask.predicted_iou for mask in in_full] != [mask.predicted_iou for mask in masks]


def mask_of(mask: RefinedMask) -> NDArray[np.bool_]:
    assert mask.mask_size is not None
    assert mask.mask_counts is not None
    return decode_mask(mask.mask_size, mask.mask_counts)


def test_a_declared_size_is_that_of_the_original(refiner: Refiner) -> None:
    data = jpeg(photograph(805, 603))
    assert [m.status for m in refine_job(refiner, CONFIG.refiner, job(data, image_size=(603, 805)))] == ["ok"] * 2
    [failed, _] = refine_job(refiner, CONFIG.refiner, job(data, image_size=(151, 202)))
    assert failed.error == "/i: expected the declared 202 x 151 pixels, the upright image has 805 x 603"


def test_the_bundled_models_masks_are_those_of_the_full_decode() -> None:
    """A photograph of 7 megapixels, with grain; by IoU."""
    grain = np.random.default_rng(0).normal(0, 3, (2046, 3072, 1))
    large = Image.fromarray(pictures.chelsea()).resize((3072, 2046), Image.Resampling.BICUBIC)
    data = jpeg(Image.fromarray(np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)))
    boxes = [(885.0, 136.0, 2900.0, 2040.0), (1000.0, 450.0, 1400.0, 800.0), (1650.0, 900.0, 2150.0, 1200.0)]
    asked = [Prompt(prompt_id=str(n), image_id="i", image_uri="/i", box_xyxy=box) for n, box in enumerate(boxes)]
    nano = Refiner(RefinerConfig(jitter_count=0))
    assert decoded(data, nano.input_side).scale == 4
    full = nano.refine_image(decoded(data, None).pixels, asked)
    for one, other in zip(nano.refine_file(data, asked), full, strict=True):
        both = [{"size": mask.mask_size, "counts": str(mask.mask_counts).encode()} for mask in (one, other)]
        assert coco_mask.iou(both[:1], both[1:], [0])[0, 0] > 0.98
