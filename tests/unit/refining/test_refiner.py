"""The refiner on the tiny random model: one row for each prompt, and the same row whatever surrounds it."""

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor

from stable_sam.config import RefinerConfig, RoutingConfig
from stable_sam.errors import ImageError
from stable_sam.records import Prompt
from stable_sam.refining import refiner as refiner_module
from stable_sam.refining.refiner import Refiner
from stable_sam.rle import decode_mask

HW = (90, 120)


def tiny(**settings) -> Refiner:
    # The tiny model's logits are small: SAM's offset of 1 would call every mask unstable.
    return Refiner(RefinerConfig(**{"model": "tiny", "jitter_count": 3, "stability_offset": 0.002, **settings}))


def prompt(name: str, box=None, points=(), labels=None, error=None) -> Prompt:
    labels = (1,) * len(points) if labels is None else labels
    return Prompt(
        prompt_id=name, image_id="i", image_uri="u", box_xyxy=box, points_xy=points, point_labels=labels, error=error
    )


PROMPTS = [
    prompt("box", (10.0, 12.0, 60.0, 70.0)),
    prompt("bad", (0.1, 0.1, 0.4, 0.5)),
    prompt("point", points=((40.0, 30.0),)),
    prompt("small box", (80.0, 50.0, 100.0, 66.0)),
    prompt("points", points=((40.0, 30.0), (100.0, 80.0)), labels=(1, 0)),
    prompt("both", (10.0, 12.0, 60.0, 70.0), points=((40.0, 30.0),)),
    prompt("refused by the reader", (1.0, 2.0, 3.0, 40.0), error="image entry missing"),
    *(prompt(f"box {i}", (5.0 + 3 * i, 8.0, 50.0 + 4 * i, 60.0 + 2 * i)) for i in range(6)),
]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    coarse = np.random.default_rng(4).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize(HW[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return tiny()


def mask_of(refined) -> np.ndarray:
    return decode_mask(refined.mask_size, refined.mask_counts)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def assert_same_row(one, other) -> None:
    """The tolerance that `Refiner` states."""
    assert (one.prompt_id, one.status, one.error, one.route) == (
        other.prompt_id,
        other.status,
        other.error,
        other.route,
    )
    if one.status == "ok":
        assert iou(mask_of(one), mask_of(other)) > 0.999
        for score in ("predicted_iou", "stability_score", "prompt_stability", "dsp_weight"):
            assert getattr(one, score) == pytest.approx(getattr(other, score), abs=1e-4)


def test_one_row_for_each_prompt_in_order(refiner, image):
    rows = refiner.refine_image(image, PROMPTS)
    assert [row.prompt_id for row in rows] == [p.prompt_id for p in PROMPTS]
    failed = {row.prompt_id: row for row in rows if row.status == "failed"}
    assert failed.keys() == {"bad", "refused by the reader"}
    assert "normalised" in failed["bad"].error
    assert failed["refused by the reader"].error == "image entry missing"
    assert all(row.mask_counts is None and row.predicted_iou is None for row in failed.values())
    assert {row.route for row in failed.values()} == {"reject"}


def test_a_rows_fields_agree_with_its_mask(refiner, image):
    for row in refiner.refine_image(image, PROMPTS):
        if row.status == "failed":
            continue
        mask = mask_of(row)
        assert mask.shape == row.mask_size == HW
        assert row.area == mask.sum() > 0
        assert 0 < row.stability_score <= 1
        assert 0 < row.prompt_stability <= 1
        assert 0 < row.dsp_weight < 1
        assert (row.box_agreement is None) == (row.prompt_id in ("point", "points"))
        assert row.route is not None


def test_many_prompts_give_what_one_by_one_gives(refiner, image):
    together = refiner.refine_image(image, PROMPTS)
    for one, row in zip(PROMPTS, together, strict=True):
        assert_same_row(refiner.refine_image(image, [one])[0], row)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_the_chunk_size_changes_nothing(refiner, image, chunk):
    chunked = tiny(prompt_chunk_size=chunk).refine_image(image, PROMPTS)
    for one, other in zip(refiner.refine_image(image, PROMPTS), chunked, strict=True):
        assert_same_row(one, other)


def test_the_decoder_never_sees_more_prompts_than_a_chunk(monkeypatch, image):
    from stable_sam.refining import predict

    seen = []
    decode = predict.decode_chosen_masks

    def watched(sam, image, *, boxes, points, ambiguous):
        seen.append(len(points[0] if boxes is None else boxes))
        return decode(sam, image, boxes=boxes, points=points, ambiguous=ambiguous)

    monkeypatch.setattr(predict, "decode_chosen_masks", watched)
    tiny(prompt_chunk_size=4, jitter_count=7, tiles="off").refine_image(image, PROMPTS)
    assert max(seen) == 4
    assert sum(seen) == (1 + 7 + 1) * (len(PROMPTS) - 2), "itself, those nearby, and its second pass"


def test_without_tiles_the_encoder_runs_once_and_only_when_needed(monkeypatch, image):
    runs, refiner = [], tiny(tiles="off")
    embed = refiner_module.embed_resized
    monkeypatch.setattr(refiner_module, "embed_resized", lambda *args: runs.append(1) or embed(*args))
    refiner.refine_image(image, PROMPTS)
    assert len(runs) == 1
    assert refiner.refine_image(image, []) == []
    assert refiner.refine_image(image, [PROMPTS[1]])[0].status == "failed"
    assert len(runs) == 1


@pytest.mark.parametrize("plugin", [True, False])
def test_masks_are_sam_predictors(image, plugin):
    """Against segment_anything's own predictor: its resize by Pillow differs by a gray level here and there."""
    refiner = tiny(plugin=plugin, second_pass="off", tiles="off")
    predictor = SamPredictor(refiner.model.sam)
    predictor.set_image(image)
    rows = {row.prompt_id: row for row in refiner.refine_image(image, PROMPTS)}
    box = np.array(PROMPTS[0].box_xyxy)
    masks, scores, _ = predictor.predict(box=box, multimask_output=False)
    assert iou(mask_of(rows["box"]), masks[0]) > 0.98
    assert rows["box"].predicted_iou == pytest.approx(scores[0], abs=5e-3)
    masks, scores, _ = predictor.predict(
        point_coords=np.array([[40.0, 30.0], [100.0, 80.0]]), point_labels=np.array([1, 0]), multimask_output=False
    )
    assert iou(mask_of(rows["points"]), masks[0]) > 0.98
    masks, scores, _ = predictor.predict(
        point_coords=np.array([[40.0, 30.0]]), point_labels=np.array([1]), multimask_output=True
    )
    assert iou(mask_of(rows["point"]), masks[scores.argmax()]) > 0.98
    assert rows["point"].predicted_iou == pytest.approx(scores.max(), abs=5e-3)


def test_without_plugin_dsp_weight_is_zero(image):
    rows = tiny(plugin=False).refine_image(image, PROMPTS[:1])
    assert rows[0].dsp_weight == 0.0


def test_without_jitter_there_is_no_prompt_stability(image):
    rows = tiny(jitter_count=0).refine_image(image, PROMPTS)
    assert all(row.prompt_stability is None for row in rows)


def test_a_jitter_of_nothing_is_perfectly_stable(image):
    rows = tiny(jitter_scale=0.0).refine_image(image, PROMPTS[:1])
    assert rows[0].prompt_stability == pytest.approx(1.0, abs=1e-4)


def test_routing_uses_the_given_thresholds(image):
    never = RoutingConfig(reject_predicted_iou=1.0)
    refiner = Refiner(RefinerConfig(model="tiny", jitter_count=0), never)
    row = refiner.refine_image(image, PROMPTS[:1])[0]
    assert row.route == "reject"
    assert row.route_reason.startswith("predicted_iou")


def test_pillow_images_are_turned_upright(refiner, image):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    sideways = Image.fromarray(np.ascontiguousarray(np.rot90(image)))
    sideways.getexif().update(exif)
    rows = refiner.refine_image(sideways, PROMPTS[:1])
    assert rows == refiner.refine_image(image, PROMPTS[:1])


def test_gray_pillow_images_are_taken(refiner, image):
    gray = Image.fromarray(image).convert("L")
    rows = refiner.refine_image(gray, PROMPTS[:1])
    assert rows == refiner.refine_image(np.repeat(np.array(gray)[..., None], 3, axis=2), PROMPTS[:1])


@pytest.mark.parametrize(
    "unusable", [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3), np.float32), np.zeros((0, 5, 3), np.uint8)]
)
def test_other_arrays_are_refused(refiner, unusable):
    with pytest.raises(ImageError, match="uint8"):
        refiner.refine_image(unusable, PROMPTS)


@pytest.mark.parametrize("hw", [(1, 1), (2, 3000), (3000, 2)])
def test_images_of_extreme_shape(refiner, hw):
    pixels = np.full((*hw, 3), 128, np.uint8)
    rows = refiner.refine_image(pixels, [prompt("whole", (0.0, 0.0, float(hw[1]), float(hw[0])))])
    assert rows[0].status == "ok"
    assert rows[0].mask_size == hw


def test_nan_from_the_model_fails_the_prompt(image):
    refiner = tiny()
    with torch.no_grad():
        refiner.model.sam.mask_decoder.output_hypernetworks_mlps[0].layers[0].weight.fill_(float("nan"))
    rows = refiner.refine_image(image, PROMPTS[:1])
    assert rows[0].status == "failed"
    assert "NaN" in rows[0].error
    assert rows[0].prompt_stability is None


def test_bfloat16_encoder_gives_nearly_the_same_masks(refiner, image):
    half = tiny(dtype="bfloat16")
    assert half.identity.dtype == "bfloat16"
    one, other = (r.refine_image(image, PROMPTS[:1])[0] for r in (refiner, half))
    assert iou(mask_of(one), mask_of(other)) > 0.9


@pytest.mark.parametrize("view", [np.s_[:, :, ::-1], np.s_[::-1], np.s_[:, ::-1], np.s_[::2, ::2]])
def test_views_of_an_array_are_what_their_copies_are(refiner, image, view):
    """`bgr[..., ::-1]` is how OpenCV's users make RGB: torch takes no negative strides."""
    box = prompt("box", (10.0, 12.0, 40.0, 40.0))
    assert refiner.refine_image(image[view], [box]) == refiner.refine_image(image[view].copy(), [box])
