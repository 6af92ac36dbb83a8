"""The model: one module for each box of the paper's Figure 3, around the unchanged classes of `segment_anything`."""

from stable_sam.modeling.light_import import without_compiler

with without_compiler():
    import segment_anything  # noqa: F401
