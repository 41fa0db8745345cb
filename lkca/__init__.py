"""A reproducible companion to "LKCA: Large Kernel Convolutional Attention"."""

from lkca.models.vit import ViT
from lkca.operator import LKCA, lkca

__all__ = ["LKCA", "ViT", "lkca"]
__version__ = "0.6.0"
