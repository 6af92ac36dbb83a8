"""The base models: what each is, where its file is from, and whether it is on this machine. Never imports torch."""

from __future__ import annotations

from stable_sam.bases.base import Base, Fit, PublishedFile

__all__ = ["BASES", "Base", "Fit", "PublishedFile"]

SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything/"

BASES: dict[str, Base] = {
    base.name: base
    for base in (
        Base(
            name="nano", title="nano", family="nano", parameters=6_600_000, input_side=384, licence="Apache-2.0",
        ),
        Base(
            name="tiny", title="a random model for tests", family="tiny", parameters=0, input_side=64,
            licence="Apache-2.0",
        ),
        Base(
            name="vit_b", title="SAM ViT-B", family="sam", parameters=93_735_472, input_side=1024,
            licence="Apache-2.0",
            file=PublishedFile(
                name="sam_vit_b_01ec64.pth", url=SAM_FILES + "sam_vit_b_01ec64.pth", size=375_042_383,
                sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            ),
        ),
        Base(
            name="vit_l", title="SAM ViT-L", family="sam", parameters=312_342_832, input_side=1024,
            licence="Apache-2.0",
            file=PublishedFile(
                name="sam_vit_l_0b3195.pth", url=SAM_FILES + "sam_vit_l_0b3195.pth", size=1_249_524_607,
                sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            ),
        ),
        Base(
            name="vit_h", title="SAM ViT-H", family="sam", parameters=641_090_608, input_side=1024,
            licence="Apache-2.0",
            file=PublishedFile(
                name="sam_vit_h_4b8939.pth", url=SAM_FILES + "sam_vit_h_4b8939.pth", size=2_564_550_879,
                sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            ),
        ),
        Base(
            name="vit_t", title="MobileSAM", family="mobile_sam", parameters=10_130_092, input_side=1024,
            licence="Apache-2.0", extra="timm",
            file=PublishedFile(
                name="mobile_sam.pt", size=40_728_226,
                url="https://github.com/ChaoningZhang/MobileSAM/raw/refs/heads/master/weights/mobile_sam.pt",
                sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            ),
        ),
    )
}  # fmt: skip
