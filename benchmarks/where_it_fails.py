"""Find out where a noisy box spoils the mask: in the decoder's tokens, which the plugin can mend, or its image stream.

    python benchmarks/where_it_fails.py --data VAL --markdown out/where.md

SAM makes a mask from two outputs of its decoder: the mask token, which becomes a kernel, and the image features, which
the kernel reads. Both are computed with the true box and with a noisy one, and then exchanged.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stable_sam.config import RefinerConfig
from stable_sam.evaluation.evaluate import read_sets
from stable_sam.evaluation.evaluation_config import EvaluationConfig
from stable_sam.evaluation.prompts import PromptKind, prompt_rng, tight_box
from stable_sam.evaluation.true_masks import TruthImage, TruthObject
from stable_sam.images.decode import decode_image
from stable_sam.modeling.decoder import decoder_inputs, read_masks
from stable_sam.modeling.load import LoadedModel, load_model
from stable_sam.refining.predict import ImageView, embed_image

Scores = dict[str, list[float]]


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--checkpoint", help="URI of the base's weights; the bundled ones for nano")
    parser.add_argument("--objects", type=int, default=150)
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--random-prompts", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    refiner = RefinerConfig.from_dict({"model": options.model, "checkpoint_uri": options.checkpoint, "plugin": False})
    settings = EvaluationConfig(refiner=refiner, methods=("sam",), max_objects=options.objects, min_area_fraction=0.005)
    model = load_model(refiner)
    kind = PromptKind.parse(f"noisy-box-{options.noise}")
    scores: Scores = {}
    for part in read_sets([options.data], settings):
        for image in part.images:
            view = embed_image(model, _pixels(image, refiner))
            for item in image.objects:
                rng = prompt_rng(settings.seed, part.name, item.annotation_id, kind.name)
                noisy = kind.draw(item.mask(), rng, options.random_prompts)
                if noisy is not None:
                    _score(model, view, item, noisy, scores)
    lines = ["| tokens from | image stream from | mIoU |", "|---|---|---|"]
    lines += [f"| {name} | {statistics.fmean(values):.3f} |" for name, values in scores.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text, encoding="utf-8")


def _pixels(image: TruthImage, refiner: RefinerConfig) -> NDArray[np.uint8]:
    return decode_image(image.path.read_bytes(), name=str(image.path), max_pixels=refiner.max_image_pixels)


@torch.inference_mode()
def _score(model: LoadedModel, view: ImageView, item: TruthObject, noisy: NDArray[np.float64], scores: Scores) -> None:
    truth = item.mask()
    boxes = {"noisy box": noisy, "true box": np.repeat(tight_box(truth)[None], len(noisy), 0)}
    outputs = {name: _transform(model, view, box) for name, box in boxes.items()}
    for tokens_from, (tokens, _) in outputs.items():
        for stream_from, (_, source) in outputs.items():
            logits = read_masks(model.sam.mask_decoder, tokens, source, view.features.fine)[0][:, 0]
            masks = [view.frame.to_original(row) > 0 for row in logits.float().cpu().numpy()]
            ious = [float((mask & truth).sum() / (mask | truth).sum()) for mask in masks]
            scores.setdefault(f"{tokens_from} | {stream_from}", []).append(statistics.fmean(ious))


def _transform(model: LoadedModel, view: ImageView, boxes_xyxy: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    decoder = model.sam.mask_decoder
    boxes = torch.from_numpy(view.frame.to_model_xyxy(boxes_xyxy)).to(model.device)
    output_tokens = torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight))
    source, position, tokens = decoder_inputs(model.sam, view.features.embedding, output_tokens, boxes, None)
    tokens_out, source_out = decoder.transformer(source, position, tokens)
    return tokens_out, source_out


if __name__ == "__main__":
    main()
