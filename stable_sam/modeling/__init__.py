"""The model: one file for each box of the paper's Figure 3, around the unchanged classes of `segment_anything`."""

from stable_sam.modeling.light_import import import_segment_anything

import_segment_anything()
