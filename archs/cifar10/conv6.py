from torch import nn

from archs.families import CONV6, conv_net


def conv6(num_classes: int = 10) -> nn.Module:
    """Conv-6: six convolutions, a max-pool after every second, and two hidden layers, for 3x32x32 images.

    Source: Frankle & Carbin (2019), Figure 2.
    Weights, with 10 classes: 2,261,184 (1,144,512 of them in convolutions).

    Figure 2 counts 1.7M weights, 1.1M of them in convolutions. The layers that it lists, built here, hold
    those 1.1M and another 1.1M in the fully-connected layers.
    """
    return conv_net(CONV6, in_channels=3, image_size=32, num_classes=num_classes)
