from torch import nn

from archs.torchvision_families import small_resnet18


def resnet18(num_classes: int = 10) -> nn.Module:
    """ResNet-18 with a 3x3 stem of stride 1, for 3x32x32 images.

    Source: He et al. (2016), Table 1.
    Weights, with 10 classes: 11,164,352.
    """
    return small_resnet18(in_channels=3, num_classes=num_classes)
