from torch import nn

from archs.families import alexnet


def AlexNet(num_classes: int = 10) -> nn.Module:
    """AlexNet in torchvision's widths, with a 5x5 stem of stride 1, for 1x28x28 images.

    The images are padded with zeros to 32x32.
    Source: Krizhevsky (2014), arXiv:1404.5997.
    Weights, with 10 classes: 28,702,272.
    """
    return alexnet(in_channels=1, image_size=28, num_classes=num_classes)
