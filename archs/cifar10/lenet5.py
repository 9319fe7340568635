from torch import nn

from archs.families import lenet


def lenet5(num_classes: int = 10) -> nn.Module:
    """LeNet-5 with ReLU and max-pooling, for 3x32x32 images.

    Source: LeCun et al. (1998), Section II.B.
    Weights, with 10 classes: 61,770.
    """
    return lenet(in_channels=3, image_size=32, num_classes=num_classes)
