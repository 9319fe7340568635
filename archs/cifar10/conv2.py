from torch import nn

from archs.families import CONV2, conv_net


def conv2(num_classes: int = 10) -> nn.Module:
    """Conv-2: two convolutions, a max-pool after every second, and two hidden layers, for 3x32x32 images.

    Source: Frankle & Carbin (2019), Figure 2.
    Weights, with 10 classes: 4,300,992 (38,592 of them in convolutions).
    """
    return conv_net(CONV2, in_channels=3, image_size=32, num_classes=num_classes)
