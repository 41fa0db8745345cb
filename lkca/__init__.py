"""A reproducible companion to "LKCA: Large Kernel Convolutional Attention"."""

from lkca.operator import LKCA, lkca
from lkca.vit import ViT

__all__ = ["LKCA", "ViT", "lkca"]
__version__ = "0.5.0"
