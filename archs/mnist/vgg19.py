from torch import nn

from archs.families import VGG19, vgg


def vgg19(num_classes: int = 10) -> nn.Module:
    """VGG-19 with batch norm, four poolings and one linear layer, for 1x28x28 images.

    The images are padded with zeros to 32x32.
    Source: Frankle & Carbin (2019), Figure 2.
    Weights, with 10 classes: 20,022,848 (20,017,728 of them in convolutions).
    """
    return vgg(VGG19, hidden=(), in_channels=1, image_size=28, num_classes=num_classes)
