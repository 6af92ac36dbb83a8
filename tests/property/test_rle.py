import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from stable_sam.rle import decode_mask, encode_mask

masks = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24).flatmap(
    lambda shape: arrays(np.bool_, shape, elements=st.booleans())
)


@settings(max_examples=40, deadline=None)
@given(masks, st.booleans())
def test_encoding_is_cocos_and_comes_back(mask, column_order):
    if column_order:
        mask = np.asfortranarray(mask)
    encoded = encode_mask(mask)
    reference = coco_mask.encode(np.array(mask, dtype=np.uint8, order="F"))
    assert encoded.counts == reference["counts"].decode()
    assert list(encoded.size_hw) == reference["size"] == list(mask.shape)
    np.testing.assert_array_equal(decode_mask(encoded.size_hw, encoded.counts), mask)


@settings(max_examples=40, deadline=None)
@given(masks)
def test_area_and_box_are_the_masks(mask):
    encoded = encode_mask(mask)
    assert encoded.area == mask.sum()
    ys, xs = np.nonzero(mask)
    x, y, w, h = encoded.bbox_xywh
    if encoded.area:
        assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    else:
        assert encoded.bbox_xywh == (0, 0, 0, 0)
