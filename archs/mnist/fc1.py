from torch import nn

from archs.families import fully_connected


def fc1(num_classes: int = 10) -> nn.Module:
    """Fully connected, with hidden layers of 300 and 100 units, for 1x28x28 images.

    Source: Frankle & Carbin (2019), Figure 2, where it is called Lenet.
    Weights, with 10 classes: 266,200.
    """
    return fully_connected((28 * 28, 300, 100, num_classes))
