from torch import nn

from archs.families import alexnet


def AlexNet(num_classes: int = 10) -> nn.Module:
    """AlexNet in torchvision's widths, with a 5x5 stem of stride 1, for 3x32x32 images.

    Source: Krizhevsky (2014), arXiv:1404.5997.
    Weights, with 10 classes: 28,705,472.
    """
    return alexnet(in_channels=3, image_size=32, num_classes=num_classes)
