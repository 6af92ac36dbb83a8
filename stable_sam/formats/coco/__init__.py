"""COCO and LVIS: instances and detection results."""
