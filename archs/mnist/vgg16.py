from torch import nn

from archs.families import VGG16, vgg


def vgg16(num_classes: int = 10) -> nn.Module:
    """VGG-16 with batch norm and hidden layers of 512 units with dropout, for 1x28x28 images.

    The images are padded with zeros to 32x32.
    Source: Simonyan & Zisserman (2015), Table 1, D.
    Weights, with 10 classes: 15,238,720.
    """
    return vgg(VGG16, hidden=(512, 512), in_channels=1, image_size=28, num_classes=num_classes)
