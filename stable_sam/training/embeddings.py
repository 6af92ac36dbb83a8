"""The embeddings of training pictures on disk: the base is frozen, so each picture is encoded once, not in every step.

A file holds one picture, or a window of it, in the frame and arithmetic of inference, as float16: the tensors of
`ImageFeatures` by their names (early ones when they were asked for). It is used again only for the same base, input
size and arithmetic, and as long as the picture's file has the same modification time and size.
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
    """A folder of embeddings of one base; runs may share it, also at the same time."""

    def __init__(self, folder: Path, model: LoadedModel) -> None:
        """`model`: the base, without plugin; with HQ-SAM's branch its early features are stored and read, too."""
        self.model, self.early = model, model.hq is not None
        self.size = int(model.sam.image_encoder.img_size)
        """S, the side of the model's input in pixels."""
        identity = model.identity
        self.folder = folder / f"{identity.model_id}-{self.size}-{identity.dtype}-{identity.weights_sha256[:16]}"

    def fill(self, items: Iterable[TrainingImage]) -> None:
        """Encode those of `items` (each picture once) that are not in the cache; what a kill left is kept.

        Raises `ImageError` for a picture that cannot be used and `StorageError` when the disk has no room.
        """
        items = list(items)
        missing = [item for item in items if not self._holds(item)]
        log.info("embeddings: %d of %d pictures are in %s", len(items) - len(missing), len(items), self.folder)
        if not missing:
            return
        with (
            closing(ahead(lambda item: (item, read_annotated(item)), missing, BATCHES_AHEAD, threads=1)) as pictures,
            progress_bar("encoding", len(items), len(items) - len(missing)) as advance,
        ):
            for number, (item, pixels) in enumerate(pictures):
                data = self._encode(item, pixels)
                if number == 0:
                    self._check_room(len(data) * len(missing), len(missing))
                write_bytes(str(self._file(item)), data)
                advance()

    def read(self, item: TrainingImage) -> ImageFeatures:
        """The features of one picture or window that `fill` has encoded, float16.

        Raises `StorageError` when its file has gone or was damaged since.
        """
        file = self._file(item)
        try:
            with safe_open(file, "pt") as stored:
                tensors = {name: stored.get_tensor(name)[None].clone() for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{file}: embedding of {item.path} lost, start again to make it anew: {error}") from None
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
            log.warning("%s: broken, the picture is encoded again: %s", file, error)
            return False

    def _metadata(self, item: TrainingImage) -> dict[str, str]:
        try:
            stat = item.path.stat()
        except OSError as error:
            raise ImageError(f"{item.path}: expected a training picture: {error.strerror}") from None
        version = f"{stat.st_mtime_ns}-{stat.st_size}"
        base = self.model.identity.weights_sha256
        return {"base_sha256": base, "picture": str(item.path.resolve()), "version": version}

    def _encode(self, item: TrainingImage, pixels: NDArray[np.uint8]) -> bytes:
        view = embed_image(self.model, pixels)
        stored = view.features.map(lambda part: part[0].to("cpu", torch.float16).contiguous())
        return bytes(save(feature_names(stored), self._metadata(item)))

    def _check_room(self, need: int, pictures: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise StorageError(f"{self.folder}: expected a folder for embeddings: {error.strerror}") from None
        log.info("embeddings: %d pictures to encode, %s of disk, %s free", pictures, _gb(need), _gb(free))
        if need > free:
            raise StorageError(
                f"{self.folder}: the embeddings of {pictures} pictures need {_gb(need)}, expected as much free disk, "
                f"got {_gb(free)}"
            )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
