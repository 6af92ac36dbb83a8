"""Compare the base `vit_t` with MobileSAM's own package on random weights, and time its encoder and decoder.

    pip install --no-deps --target /tmp/mobile_sam mobilesam-mirror==1.0.0
    PYTHONPATH=.:/tmp/mobile_sam python benchmarks/parity_mobile_sam.py

The package stays outside the environment, because importing it replaces timm's own TinyViT models. Its random model is
written to a file as the published one is, and the file is loaded as a run loads it. The command prints the largest
differences of embeddings and mask logits, beside their standard deviations, and seconds of one thread.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stable_sam.modeling.bases.mobile_sam import load
from stable_sam.modeling.decoder import decode_prompts
from stable_sam.modeling.fast.decoder import decode_chosen_masks, image_side
from stable_sam.modeling.features import ImageFeatures

BOXES = torch.tensor([[100.0, 200.0, 500.0, 640.0], [0.0, 0.0, 1023.0, 700.0], [600.0, 30.0, 660.0, 90.0]])
POINTS = (torch.tensor([[[300.0, 400.0]], [[500.0, 90.0]], [[630.0, 60.0]]]), torch.ones(3, 1))


@torch.inference_mode()
def main() -> None:
    """Compare, then measure."""
    torch.set_num_threads(1)
    theirs = random_mobile_sam()
    file = BytesIO()
    torch.save(theirs.state_dict(), file)
    ours = load("vit_t", file.getvalue(), "random mobile_sam.pt")
    print(f"tensors in the file: {len(theirs.state_dict())}, all loaded")

    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 1024, 1024)).astype(np.float32))
    expected, seconds = timed(lambda: theirs.image_encoder(image))
    print(f"encoder of mobile_sam: {seconds:.2f} s")
    for name, encode in (("features", ours.features), ("fast_features", ours.fast_features)):
        found, seconds = timed(lambda encode=encode: encode(image).embedding)
        print(f"{name}: {seconds:.2f} s, {difference(found, expected)}")

    features = ImageFeatures(expected)
    side = image_side(ours, features)
    for name, prompts in (("boxes", {"boxes": BOXES}), ("points", {"points": POINTS})):
        sparse, dense = theirs.prompt_encoder(masks=None, **{"boxes": None, "points": None, **prompts})
        position = theirs.prompt_encoder.get_dense_pe()
        logits, iou = theirs.mask_decoder.predict_masks(expected, position, sparse, dense)
        found, seconds = timed(lambda prompts=prompts: decode_prompts(ours, features, **prompts))
        fast, fast_seconds = timed(lambda prompts=prompts: decode_chosen_masks(ours, side, **prompts))
        print(f"{name}, decoder: {seconds:.2f} s, {difference(found.logits, logits)}")
        print(f"{name}, decoder, predicted IoU: {difference(found.iou, iou)}")
        print(f"{name}, fast decoder: {fast_seconds:.2f} s, {difference(fast.logits, logits[:, 0])}")


def random_mobile_sam() -> Any:
    """Build the package's model with random weights, running statistics and attention biases."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package imports timm by an old name and replaces models of timm
        from mobile_sam import sam_model_registry
    torch.manual_seed(0)
    sam = sam_model_registry["vit_t"]()
    for name, tensor in sam.state_dict().items():
        if name.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bn.bias", "attention_biases")):
            tensor.normal_(std=0.3)
    # The package looks its attention biases up when the mode is set, and would go on with those of before.
    return sam.eval()


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of `call` and the seconds that this process computed."""
    start = time.process_time()
    return call(), time.process_time() - start


def difference(found: Tensor, expected: Tensor) -> str:
    """Say how far `found` is from `expected`."""
    return f"largest difference {(found - expected).abs().max():.1e} (standard deviation {expected.std():.2f})"


if __name__ == "__main__":
    main()
