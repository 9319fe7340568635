from torch import nn

from archs.families import CONV6, conv_net


def conv6(num_classes: int = 10) -> nn.Module:
    """Conv-6: six convolutions, a max-pool after every second, and two hidden layers, for 1x28x28 images.

    Source: Frankle & Carbin (2019), Figure 2.
    Weights, with 10 classes: 1,801,280 (1,143,360 of them in convolutions).
    """
    return conv_net(CONV6, in_channels=1, image_size=28, num_classes=num_classes)
