from torch import nn

from archs.families import CONV4, conv_net


def conv4(num_classes: int = 10) -> nn.Module:
    """Conv-4: four convolutions, a max-pool after every second, and two hidden layers, for 1x28x28 images.

    Source: Frankle & Carbin (2019), Figure 2.
    Weights, with 10 classes: 1,932,352 (258,624 of them in convolutions).
    """
    return conv_net(CONV4, in_channels=1, image_size=28, num_classes=num_classes)
