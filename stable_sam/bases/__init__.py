"""The base models: what each is, where its file is from, and whether it is on this machine. Never imports torch."""

from stable_sam.bases.base import Base, Fit, PublishedFile
from stable_sam.bases.catalogue import BASES

__all__ = ["BASES", "Base", "Fit", "PublishedFile"]
