from torch import nn

from archs.torchvision_families import small_densenet121


def densenet121(num_classes: int = 10) -> nn.Module:
    """DenseNet-121 with a 3x3 stem of stride 1, for 3x32x32 images.

    Source: Huang et al. (2017), Table 1.
    Weights, with 10 classes: 6,872,768.
    """
    return small_densenet121(in_channels=3, num_classes=num_classes)
