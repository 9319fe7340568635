from torch import nn

from archs.torchvision_families import cifar_resnet


def resnet20(num_classes: int = 10) -> nn.Module:
    """ResNet-20, with projections as shortcuts between its stages, for 3x32x32 images.

    Source: Frankle & Carbin (2019), Figure 2, where it is called Resnet-18, after
        He et al. (2016), Section 4.2.
    Weights, with 10 classes: 270,896 (270,256 of them in convolutions).
    """
    return cifar_resnet(in_channels=3, num_classes=num_classes)
