"""Names of classes, kept in a file of their own beside the annotations of YOLO and Open Images."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from stable_sam.errors import AnnotationError, NotFoundError, one_line
from stable_sam.storage import files as storage

YOLO_FILES = ("data.yaml", "dataset.yaml", "data.yml", "obj.names", "classes.txt", "classes.names")
OPEN_IMAGES_FILES = tuple(
    f"{version}class-descriptions{kind}.csv" for version in ("", "oidv6-", "oidv7-") for kind in ("", "-boxable")
)
LEVELS = 3
"""Folders looked in: that of the annotations and those above it (labels/train, labels, the dataset)."""
MAX_BYTES = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassNames:
    """What such a file says."""

    uri: str | None = None
    """None: there was none."""
    names: Mapping[str, str] = field(default_factory=dict)
    """By the class's number or label, as text."""
    keypoints: int = 0
    """Of a YOLO-pose data.yaml: keypoints of each object, and with them `keypoint_values` each."""
    keypoint_values: int = 0


def find_class_names(folder_uri: str, candidates: Sequence[str]) -> str | None:
    """URI of the first of `candidates` in the annotations' folder or in one above; raises `StorageError`."""
    folder = storage.absolute_uri(folder_uri or ".").rstrip("/")
    for _ in range(LEVELS):
        for name in candidates:
            uri = storage.join(folder, name)
            if storage.exists(uri):
                return uri
        above = folder.rpartition("/")[0]
        if not above or above.endswith((":/", "/")):
            break
        folder = above
    return None


def read_class_names(folder_uri: str, given_uri: str | None, candidates: Sequence[str]) -> ClassNames:
    """The names in the file at `given_uri`, or in the one that `find_class_names` finds.

    Raises `AnnotationError` when the given file is missing, and for one that cannot be read.
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
