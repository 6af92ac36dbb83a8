"""The formats of COCO and LVIS: instances and detection results."""
