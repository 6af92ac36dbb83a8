"""Names of the annotation formats, apart from the configuration, which takes longer to import than `--help` should."""

from __future__ import annotations

from typing import Literal

AnnotationFormat = Literal[
    "auto", "coco", "lvis", "detections", "table", "voc", "yolo", "labelme", "labelstudio", "cvat", "openimages"
]
