"""The format of YOLO: label files and `data.yaml`."""
