"""The table of all bases.

The addresses are those of the authors' READMEs, which state no SHA-256. Sizes and SHA-256 are those of the git-lfs
pointers of several copies, which agree.
"""

from __future__ import annotations

from stable_sam.bases.base import Base, PublishedFile

_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
_SAM2 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"
_MOBILE_SAM = "https://github.com/ChaoningZhang/MobileSAM/raw/refs/heads/master/weights/"
_HQ = "https://huggingface.co/lkeab/hq-sam/resolve/a3a77cd0a2e5e50eaa76faccf61b964732d9b35f/"
"""The commit that has all four files, so that no later one changes what lies there."""


def _file(folder: str, name: str, size: int, sha256: str) -> PublishedFile:
    return PublishedFile(name=name, url=folder + name, size=size, sha256=sha256)


BASES: dict[str, Base] = {
    base.name: base
    for base in (
        Base(
            name="nano", title="nano", family="nano", parameters=6_628_442, input_side=384, licence="Apache-2.0",
        ),
        Base(
            name="vit_t", title="MobileSAM", family="mobile_sam", parameters=9_808_452, input_side=1024,
            licence="Apache-2.0", extra="timm",
            file=_file(
                _MOBILE_SAM, "mobile_sam.pt", 40_728_226,
                "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            ),
            hq_file=_file(
                _HQ, "sam_hq_vit_tiny.pth", 42_526_881,
                "0f32c075ccdd870ae54db2f7630e7a0878ede5a2b06d05d6fe02c65a82fb7196",
            ),
        ),
        Base(
            name="sam2.1_t", title="SAM 2.1 tiny", family="sam2", parameters=31_440_721, input_side=1024,
            fit="stretch", licence="Apache-2.0", extra="timm",
            file=_file(
                _SAM2, "sam2.1_hiera_tiny.pt", 156_008_466,
                "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
            ),
        ),
        Base(
            name="sam2.1_s", title="SAM 2.1 small", family="sam2", parameters=38_538_577, input_side=1024,
            fit="stretch", licence="Apache-2.0", extra="timm",
            file=_file(
                _SAM2, "sam2.1_hiera_small.pt", 184_416_285,
                "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
            ),
        ),
        Base(
            name="sam2.1_b+", title="SAM 2.1 base+", family="sam2", parameters=73_328_401, input_side=1024,
            fit="stretch", licence="Apache-2.0", extra="timm",
            file=_file(
                _SAM2, "sam2.1_hiera_base_plus.pt", 323_606_802,
                "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
            ),
        ),
        Base(
            name="sam2.1_l", title="SAM 2.1 large", family="sam2", parameters=216_924_865, input_side=1024,
            fit="stretch", licence="Apache-2.0", extra="timm",
            file=_file(
                _SAM2, "sam2.1_hiera_large.pt", 898_083_611,
                "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
            ),
        ),
        Base(
            name="vit_b", title="SAM ViT-B", family="sam", parameters=93_735_472, input_side=1024,
            licence="Apache-2.0",
            file=_file(
                _SAM, "sam_vit_b_01ec64.pth", 375_042_383,
                "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            ),
            hq_file=_file(
                _HQ, "sam_hq_vit_b.pth", 379_335_069,
                "14a9d662cd6f5a9c2dba6d40ab0058d88d287e4a18fd6fdc6ad5fb1a3fdeaa57",
            ),
        ),
        Base(
            name="vit_l", title="SAM ViT-L", family="sam", parameters=312_342_832, input_side=1024,
            licence="Apache-2.0",
            file=_file(
                _SAM, "sam_vit_l_0b3195.pth", 1_249_524_607,
                "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            ),
            hq_file=_file(
                _HQ, "sam_hq_vit_l.pth", 1_254_865_805,
                "e1a6c385d62bf005ded91a54d5ec55c985cfc4103ef89c08d90f39f04934c343",
            ),
        ),
        Base(
            name="vit_h", title="SAM ViT-H", family="sam", parameters=641_090_608, input_side=1024,
            licence="Apache-2.0",
            file=_file(
                _SAM, "sam_vit_h_4b8939.pth", 2_564_550_879,
                "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            ),
            hq_file=_file(
                _HQ, "sam_hq_vit_h.pth", 2_570_940_653,
                "a7ac14a085326d9fa6199c8c698c4f0e7280afdbb974d2c4660ec60877b45e35",
            ),
        ),
        Base(
            name="tiny", title="for tests", family="tiny", parameters=139_308, input_side=64,
            licence="Apache-2.0",
        ),
    )
}  # fmt: skip
"""Every base by its name, in the order in which lists show them."""
