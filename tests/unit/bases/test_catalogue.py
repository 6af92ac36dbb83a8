"""The table of bases says of each what is true of the model."""

from __future__ import annotations

import re

import pytest
import torch

from stable_sam.bases import BASES
from stable_sam.config import RefinerConfig
from stable_sam.errors import ConfigError
from stable_sam.modeling.bases import build_base

BUILT = tuple(BASES)


@pytest.mark.parametrize("name", BUILT)
def test_parameters_and_input_are_the_model_s(name: str) -> None:
    with torch.device("meta"):
        sam = build_base(name)
    used = {key: value for key, value in sam.named_parameters() if ".trunk.head." not in key}  # TinyViT's classifier
    assert BASES[name].parameters == sum(value.numel() for value in used.values())
    assert BASES[name].input_side == sam.input_side


@pytest.mark.parametrize("base", [base for base in BASES.values() if base.file], ids=lambda base: base.name)
def test_a_published_file_is_given_with_all_that_a_download_needs(base) -> None:
    for file in (base.file, *([base.hq_file] if base.hq_file else ())):
        assert re.fullmatch(r"https://\S+/" + re.escape(file.name), file.url)
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert file.size > 4 * base.parameters, "float32"


def test_names_and_files_are_distinct() -> None:
    published = [file for base in BASES.values() for file in (base.file, base.hq_file) if file is not None]
    assert len({file.name for file in published}) == len({file.sha256 for file in published}) == len(published)


def test_a_config_takes_every_base_and_no_other_name() -> None:
    for name in BASES:
        assert RefinerConfig.from_dict({"model": name}).model == name
    names = re.escape(", ".join(BASES))
    with pytest.raises(ConfigError, match=rf"^config: model: expected one of {names}, got 'sam3'$"):
        RefinerConfig.from_dict({"model": "sam3"})
