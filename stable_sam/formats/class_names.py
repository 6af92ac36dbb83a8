"""Class names of YOLO and Open Images, which both keep in a file of their own beside the annotations."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from stable_sam.errors import AnnotationError, NotFoundError, one_line
from stable_sam.storage import files as storage
from stable_sam.storage import uris

YOLO_FILES = ("data.yaml", "dataset.yaml", "data.yml", "obj.names", "classes.txt", "classes.names")
OPEN_IMAGES_FILES = tuple(
    f"{version}class-descriptions{kind}.csv" for version in ("", "oidv6-", "oidv7-") for kind in ("", "-boxable")
)
LEVELS = 3
"""Number of folders searched: the annotations' own and those above it (labels/train, labels, the dataset)."""
MAX_BYTES = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassNames:
    """The content of a file of class names."""

    uri: str | None = None
    """The file that was read; None when none was found."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Class names by the class's number (YOLO) or label (Open Images), both as text."""
    keypoints: int = 0
    """Number of keypoints of each object, from `kpt_shape` in the data.yaml of a YOLO-pose dataset; else 0."""
    keypoint_values: int = 0
    """Number of values of each keypoint: 2 (x, y) or 3 (x, y, visibility); 0 without keypoints."""


def find_class_names(folder_uri: str, candidates: Sequence[str]) -> str | None:
    """Return the URI of the first of `candidates` that exists in the annotations' folder or in a folder above it.

    Returns None when there is none within `LEVELS` folders. Raises `StorageError`.
    """
    folder = uris.absolute_uri(folder_uri or ".").rstrip("/")
    for _ in range(LEVELS):
        for name in candidates:
            uri = uris.join(folder, name)
            if storage.exists(uri):
                return uri
        above = folder.rpartition("/")[0]
        if not above or above.endswith((":/", "/")):
            break
        folder = above
    return None


def read_class_names(folder_uri: str, given_uri: str | None, candidates: Sequence[str]) -> ClassNames:
    """Read the class names from `given_uri`, or else from the file that `find_class_names` finds.

    The result is empty when there is no such file. Raises `AnnotationError` when the given file does not exist or the
    file does not hold class names, and `StorageError`.
    """
    uri = given_uri or find_class_names(folder_uri, candidates)
    if uri is None:
        return ClassNames()
    try:
        return _parsed(uri, storage.read_bytes(uri, max_bytes=MAX_BYTES))
    except NotFoundError:
        raise AnnotationError(f"{uri}: no such file of class names") from None


def _parsed(uri: str, content: bytes) -> ClassNames:
    try:
        text = content.decode("utf-8-sig")
        if uri.endswith((".yaml", ".yml")):
            return _of_yaml(uri, yaml.safe_load(text))
        if uri.endswith(".csv"):
            rows = csv.reader(text.splitlines())
            return ClassNames(uri=uri, names={row[0]: row[1] for row in rows if len(row) == 2})
    except (yaml.YAMLError, csv.Error, ValueError, RecursionError) as error:
        raise AnnotationError(
            f"{uri}: expected class names, got a file that cannot be read: {one_line(error)}"
        ) from None
    return ClassNames(uri=uri, names=_numbered(text.splitlines()))


def _of_yaml(uri: str, document: Any) -> ClassNames:
    given = document.get("names") if isinstance(document, dict) else None
    if isinstance(given, list):
        names = _numbered(given)
    elif isinstance(given, dict):
        names = {str(number): str(name) for number, name in given.items()}
    else:
        raise AnnotationError(f"{uri}: expected class names as a list or a mapping under names, got {given!r:.80}")
    shape = document.get("kpt_shape")
    keypoints, values = shape if _is_shape(shape) else (0, 0)
    return ClassNames(uri=uri, names=names, keypoints=keypoints, keypoint_values=values)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape) and shape[1] in (2, 3)


def _numbered(names: Sequence[Any]) -> dict[str, str]:
    return {str(number): str(name).strip() for number, name in enumerate(names)}
