"""The base models: what each is, where its file is from, and whether it is on this machine. Never imports torch."""

from __future__ import annotations

from stable_sam.bases.base import Base, Fit, PublishedFile

__all__ = ["BASES", "Base", "Fit", "PublishedFile"]

SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM2_FILES = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"

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
            name="sam2.1_t", title="SAM 2.1 Hiera-T", family="sam2", parameters=31_440_721, input_side=1024,
            fit="stretch", licence="Apache-2.0", extra="timm",
            file=PublishedFile(
                name="sam2.1_hiera_tiny.pt", url=SAM2_FILES + "sam2.1_hiera_tiny.pt", size=156_008_466,
                sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
            ),
        ),
        Base(
            name="sam2.1_s", title="SAM 2.1 Hiera-S", family="sam2", parameters=38_538_577, input_side=1024,
            fit="stretch", licence="Apache-2.0", extra="timm",
            file=PublishedFile(
                name="sam2.1_hiera_small.pt", url=SAM2_FILES + "sam2.1_hiera_small.pt", size=184_416_285,
                sha256="6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
            ),
        ),
        Base(
            name="sam2.1_b+", title="SAM 2.1 Hiera-B+", family="sam2", parameters=73_328_401, input_side=1024,
            fit="stretch", licence="Apache-2.0", extra="timm",
            file=PublishedFile(
                name="sam2.1_hiera_base_plus.pt", url=SAM2_FILES + "sam2.1_hiera_base_plus.pt", size=323_606_802,
                sha256="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
            ),
        ),
        Base(
            name="sam2.1_l", title="SAM 2.1 Hiera-L", family="sam2", parameters=216_924_865, input_side=1024,
            fit="stretch", licence="Apache-2.0", extra="timm",
            file=PublishedFile(
                name="sam2.1_hiera_large.pt", url=SAM2_FILES + "sam2.1_hiera_large.pt", size=898_083_611,
                sha256="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
            ),
        ),
    )
}  # fmt: skip
