from torch import nn

from archs.families import fully_connected


def fc1(num_classes: int = 10) -> nn.Module:
    """Fully connected, with hidden layers of 300 and 100 units, for 3x32x32 images.

    Source: Frankle & Carbin (2019), Figure 2, where it is called Lenet.
    Weights, with 10 classes: 952,600.
    """
    return fully_connected((3 * 32 * 32, 300, 100, num_classes))
