"""Bytes: storage, annotation formats, images, shards and the table of masks. Never tensors."""
