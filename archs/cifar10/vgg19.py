from torch import nn

from archs.families import VGG19, vgg


def vgg19(num_classes: int = 10) -> nn.Module:
    """VGG-19 with batch norm, four poolings and one linear layer, for 3x32x32 images.

    Source: Frankle & Carbin (2019), Figure 2.
    Weights, with 10 classes: 20,024,000 (20,018,880 of them in convolutions).
    """
    return vgg(VGG19, hidden=(), in_channels=3, image_size=32, num_classes=num_classes)
