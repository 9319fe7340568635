from torch import nn

from archs.torchvision_families import small_resnet18


def resnet18(num_classes: int = 10) -> nn.Module:
    """ResNet-18 with a 3x3 stem of stride 1, for 1x28x28 images.

    Source: He et al. (2016), Table 1.
    Weights, with 10 classes: 11,163,200.
    """
    return small_resnet18(in_channels=1, num_classes=num_classes)
