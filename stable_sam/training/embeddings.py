"""A cache on disk of the embeddings of training images: the base is frozen, so each image is encoded only once.

A file holds the features of one image or window as float16, in the frame and dtype of inference, by the names of
`feature_names`; early features are there when the base has HQ-SAM's branch. A file is used again only for the same
base, input size and dtype, and while the image's file has the same modification time and size.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from stable_sam.errors import ImageError, StorageError
from stable_sam.modeling.features import ImageFeatures, feature_names, named_features
from stable_sam.modeling.load import LoadedModel
from stable_sam.refining.predict import embed_image
from stable_sam.storage.files import write_bytes
from stable_sam.storage.parallel import ahead
from stable_sam.training.dataset import TrainingImage, read_annotated
from stable_sam.training.loop import BATCHES_AHEAD
from stable_sam.training.progress import progress_bar

log = logging.getLogger(__name__)


class EmbeddingCache:
    """A folder of embeddings of one base, which several trainings may share, also at the same time."""

    def __init__(self, folder: Path, model: LoadedModel) -> None:
        """`model` is the base without a plugin; if it has HQ-SAM's branch, early features are stored and read, too."""
        self.model, self.early = model, model.hq is not None
        self.size = model.sam.input_side
        """S, the side of the model's input in pixels."""
        identity = model.identity
        self.folder = folder / f"{identity.model_id}-{self.size}-{identity.dtype}-{identity.weights_sha256[:16]}"

    def fill(self, items: Iterable[TrainingImage]) -> None:
        """Encode those of `items`, which hold each image once, that are not in the cache.

        Files that a killed training left behind are used. Raises `ImageError` for an image that cannot be used and
        `StorageError` when the disk has not enough room.
        """
        items = list(items)
        missing = [item for item in items if not self._holds(item)]
        log.info("embeddings in %s: %d of %d", self.folder, len(items) - len(missing), len(items))
        if not missing:
            return
        with (
            closing(ahead(lambda item: (item, read_annotated(item)), missing, BATCHES_AHEAD, threads=1)) as images,
            progress_bar("encoding", len(items), len(items) - len(missing)) as advance,
        ):
            for number, (item, pixels) in enumerate(images):
                data = self._encode(item, pixels)
                if number == 0:
                    self._check_room(len(data) * len(missing))
                write_bytes(str(self._file(item)), data)
                advance()

    def read(self, item: TrainingImage) -> ImageFeatures:
        """Return the features, in float16, of one image or window that `fill` has encoded.

        Raises `StorageError` when its file was removed or damaged since.
        """
        file = self._file(item)
        try:
            with safe_open(file, "pt") as stored:
                tensors = {name: stored.get_tensor(name)[None].clone() for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{file}: the embedding of {item.path} is lost, start the training again to encode it anew: {error}"
            ) from None
        if not self.early:
            tensors.pop("early", None)
        return named_features(tensors)

    def _file(self, item: TrainingImage) -> Path:
        name = str(item.path.resolve()) + ("" if item.window is None else f" {item.window}")
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"

    def _holds(self, item: TrainingImage) -> bool:
        file = self._file(item)
        if not file.exists():
            return False
        try:
            with safe_open(file, "pt") as stored:
                complete = not self.early or "early" in stored.keys()  # noqa: SIM118 - not a mapping
                return complete and stored.metadata() == self._metadata(item)
        except (OSError, SafetensorError) as error:
            log.warning("%s: the file is broken, so the image is encoded again: %s", file, error)
            return False

    def _metadata(self, item: TrainingImage) -> dict[str, str]:
        try:
            stat = item.path.stat()
        except OSError as error:
            raise ImageError(f"{item.path}: expected a training image: {error.strerror}") from None
        version = f"{stat.st_mtime_ns}-{stat.st_size}"
        base = self.model.identity.weights_sha256
        return {"base_sha256": base, "picture": str(item.path.resolve()), "version": version}

    def _encode(self, item: TrainingImage, pixels: NDArray[np.uint8]) -> bytes:
        view = embed_image(self.model, pixels)
        stored = view.features.map(lambda part: part[0].to("cpu", torch.float16).contiguous())
        return bytes(save(feature_names(stored), self._metadata(item)))

    def _check_room(self, need: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise StorageError(f"{self.folder}: expected a folder for embeddings: {error.strerror}") from None
        log.info("new embeddings need %s of disk, %s are free", _gb(need), _gb(free))
        if need > free:
            raise StorageError(f"{self.folder}: expected {_gb(need)} of free disk for embeddings, got {_gb(free)}")


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
