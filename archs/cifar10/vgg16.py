from torch import nn

from archs.families import VGG16, vgg


def vgg16(num_classes: int = 10) -> nn.Module:
    """VGG-16 with batch norm and hidden layers of 512 units with dropout, for 3x32x32 images.

    Source: Simonyan & Zisserman (2015), Table 1, D.
    Weights, with 10 classes: 15,239,872.
    """
    return vgg(VGG16, hidden=(512, 512), in_channels=3, image_size=32, num_classes=num_classes)
