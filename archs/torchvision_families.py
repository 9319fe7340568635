"""Families of networks built from torchvision's blocks, shared like those in `archs/families.py`.

They are in a separate file because importing torchvision takes a second, which processes of small models save.
"""

from collections import OrderedDict

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock


def cifar_resnet(in_channels: int, num_classes: int, blocks: int = 3) -> nn.Module:
    """The residual networks for CIFAR-10 of He et al. (2016, Section 4.2), with 6 * blocks + 2 layers.

    Takes [N, in_channels, H, W]. Where the width doubles, the shortcut is a 1x1 projection with batch norm:
    the 270K convolutional weights of Frankle & Carbin (2019, Figure 2) include such projections.
    """

    def stage(inputs: int, width: int) -> nn.Sequential:
        shortcut = None  # the identity
        if inputs != width:
            projection = nn.Conv2d(inputs, width, 1, stride=2, bias=False)
            shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))
        first = BasicBlock(inputs, width, stride=1 if shortcut is None else 2, downsample=shortcut)
        return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))

    layers = OrderedDict(
        conv1=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(16),
        relu=nn.ReLU(),
        layer1=stage(16, 16),
        layer2=stage(16, 32),
        layer3=stage(32, 64),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(64, num_classes),
    )
    return nn.Sequential(layers)


def small_resnet18(in_channels: int, num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with a stem for small images: a 3x3 convolution with stride 1, no max-pool.

    Takes [N, in_channels, H, W]. Source: He et al. (2016), Table 1.
    """
    model = torchvision.models.resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def small_densenet121(in_channels: int, num_classes: int) -> nn.Module:
    """torchvision's DenseNet-121 with a stem for small images: a 3x3 convolution with stride 1, no max-pool.

    Takes [N, in_channels, H, W]. Source: Huang et al. (2017), Table 1.
    """
    model = torchvision.models.densenet121(num_classes=num_classes)
    model.features.conv0 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    model.features.pool0 = nn.Identity()
    return model
