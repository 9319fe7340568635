from torch import nn

from archs.families import wide_resnet


def wrn22_2(num_classes: int = 10) -> nn.Module:
    """Wide ResNet with 22 layers, twice as wide as the plain one, for 3x32x32 images.

    Source: Zagoruyko & Komodakis (2016), arXiv:1605.07146, Table 1; Evci et al. (2020), arXiv:1911.11134, Section 4.2.
    Weights, with 10 classes: 1,076,912 (1,075,632 of them in convolutions).
    """
    return wide_resnet(22, 2, in_channels=3, num_classes=num_classes)
