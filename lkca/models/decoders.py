"""What turns a backbone's four maps into one: the neck of a plain transformer, UPerNet and FPN.

As in MMSegmentation, which the paper used. UPerNet's pyramid comes from segmentation_models_pytorch, FPN's from
torchvision; the neck and FPN's head are here, because no kept library has them.
"""

import warnings
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

NECK_SCALES = (4, 2, 1, 0.5)


class MultiLevelNeck(nn.Module):
    """Four scales (x4, x2, 1, x1/2) from four maps of one size, as MMSegmentation's: 1 x 1, resize, 3 x 3."""

    def __init__(self, dim: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(dim, dim, 1) for _ in NECK_SCALES)
        self.out = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in NECK_SCALES)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Four maps (B, D, h, w) to four of NECK_SCALES times their size."""
        levels = []
        for x, scale, lateral, out in zip(maps, NECK_SCALES, self.lateral, self.out, strict=True):
            size = [round(scale * side) for side in x.shape[2:]]
            levels.append(out(resize(lateral(x), size)))
        return levels


def resize(x_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """A stack of maps brought to another size, bilinearly; the same size is left alone."""
    same = tuple(x_BCHW.shape[2:]) == tuple(size)
    return x_BCHW if same else F.interpolate(x_BCHW, size=tuple(size), mode="bilinear", align_corners=False)


class UPerNet(nn.Module):
    """UPerNet's decoder: pyramid pooling (1, 2, 3, 6) over the smallest map, a feature pyramid, and their fusion.

    It is segmentation_models_pytorch's. Its LayerNorm before each map is MMSegmentation's for Swin only, so the other
    backbones go without (``norms``). Four maps -> (B, channels, h, w) at the size of the largest.
    """

    def __init__(self, maps: list[int], channels: int, *, norms: bool):
        with warnings.catch_warnings():  # as for timm in `lkca.models.segmenters`
            warnings.simplefilter("ignore")
            from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        super().__init__()
        self.decoder = UPerNetDecoder([3, 0, *maps], encoder_depth=5, decoder_channels=channels)
        if not norms:
            self.decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in maps)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Fuse four maps, the largest first."""
        return self.decoder([None, None, *maps])


class FPN(nn.Module):
    """Panoptic FPN's decoder (Kirillov et al. 2019): torchvision's pyramid, then convolutions and doublings, summed.

    Level i is doubled i times whatever its size, as in MMSegmentation, and then brought to the first one's size: with
    four maps of one size the others are computed at up to eight times it. Four maps -> (B, head, h, w).
    """

    def __init__(self, maps: list[int], channels: int, head: int):
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(maps, channels)

        def level(doublings: int) -> nn.Sequential:
            layers = []
            for i in range(max(doublings, 1)):
                layers.append(Conv2dNormActivation(head if i else channels, head, 3))
                if doublings:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            return nn.Sequential(*layers)

        self.levels = nn.ModuleList(level(i) for i in range(4))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Fuse four maps, the largest first."""
        maps = list(self.pyramid({str(i): m for i, m in enumerate(maps)}).values())
        levels = [level(m) for level, m in zip(self.levels, maps, strict=True)]
        return sum(resize(x, levels[0].shape[2:]) for x in levels[1:]) + levels[0]
