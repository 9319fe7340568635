from torch import nn

from archs.families import CONV2, conv_net


def conv2(num_classes: int = 10) -> nn.Module:
    """Conv-2: two convolutions, a max-pool after every second, and two hidden layers, for 1x28x28 images.

    Source: Frankle & Carbin (2019), Figure 2.
    Weights, with 10 classes: 3,316,800 (37,440 of them in convolutions).
    """
    return conv_net(CONV2, in_channels=1, image_size=28, num_classes=num_classes)
