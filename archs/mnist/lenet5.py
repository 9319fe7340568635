from torch import nn

from archs.families import lenet


def lenet5(num_classes: int = 10) -> nn.Module:
    """LeNet-5 with ReLU and max-pooling, for 1x28x28 images.

    The images are padded with zeros to 32x32.
    Source: LeCun et al. (1998), Section II.B.
    Weights, with 10 classes: 61,470.
    """
    return lenet(in_channels=1, image_size=28, num_classes=num_classes)
