"""Families of networks, in plain PyTorch, that the model files of several data sets share.

A family takes the number of channels and the side of the square images, so that one definition serves MNIST
(1, 28) and CIFAR-10 (3, 32). The program looks for models only in `archs/<dataset>/`, so it does not see this file.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

Plan = Sequence[int | str]  # a number: a 3x3 convolution with that many filters; "pool": a 2x2 max-pool

CONV2: Plan = (64, 64, "pool")
CONV4: Plan = (*CONV2, 128, 128, "pool")
CONV6: Plan = (*CONV4, 256, 256, "pool")
VGG16: Plan = (64, 64, "pool", 128, 128, "pool", *[256] * 3, "pool", *[512] * 3, "pool", *[512] * 3, "pool")
VGG19: Plan = (64, 64, "pool", 128, 128, "pool", *[256] * 4, "pool", *[512] * 4, "pool", *[512] * 4)


def fully_connected(sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers from `sizes[0]` inputs to `sizes[-1]` logits.

    Takes [N, ...] with `sizes[0]` numbers per example, and flattens them. ReLU follows each hidden layer, and then
    dropout with probability `dropout`, if that is not 0.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{i}"] = nn.Linear(inputs, outputs)
        if i < len(sizes) - 1:
            layers[f"relu{i}"] = nn.ReLU()
            if dropout:
                layers[f"dropout{i}"] = nn.Dropout(dropout)
    return nn.Sequential(layers)


def convolutional(
    plan: Plan,
    in_channels: int,
    batch_norm: bool = False,
    extra_padding: int = 0,
) -> nn.Sequential:
    """The layers of `plan`, with ReLU after each convolution, and batch norm between the two if `batch_norm` is set.

    Takes [N, in_channels, H, W]. Convolutions keep the size, except that the first one pads the image with
    `extra_padding` more zeros on each side. With batch norm, which would cancel a bias, convolutions have none.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    i, padding = 0, 1 + extra_padding
    for step in plan:
        if isinstance(step, str):
            layers[f"pool{i}"] = nn.MaxPool2d(2)
            continue
        i += 1
        layers[f"conv{i}"] = nn.Conv2d(in_channels, step, 3, padding=padding, bias=not batch_norm)
        if batch_norm:
            layers[f"bn{i}"] = nn.BatchNorm2d(step)
        layers[f"relu{i}"] = nn.ReLU()
        in_channels, padding = step, 1
    return nn.Sequential(layers)


def padding_to_32(image_size: int) -> int:
    """The number of zeros on each side that make the image 32x32: a smaller one is too small for five poolings.

    Added to the first convolution's padding, they have the same effect as padding the image, without the copy.
    """
    return (32 - image_size) // 2


def lenet(in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998, Section II.B) with ReLU, max-pooling and all channels connected.

    Takes [N, in_channels, image_size, image_size]; images are padded to 32x32, as in the paper.
    """
    layers = OrderedDict(
        conv1=nn.Conv2d(in_channels, 6, 5, padding=padding_to_32(image_size)),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        classifier=fully_connected((16 * 5 * 5, 120, 84, num_classes)),
    )
    return nn.Sequential(layers)


def conv_net(plan: Plan, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Conv-2, Conv-4 and Conv-6 (Frankle & Carbin 2019, Figure 2): small VGG networks without batch norm.

    Takes [N, in_channels, image_size, image_size].
    """
    filters = [step for step in plan if isinstance(step, int)]
    side = image_size // 2 ** plan.count("pool")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        features=convolutional(plan, in_channels),
        classifier=fully_connected((filters[-1] * side * side, 256, 256, num_classes)),
    )
    return nn.Sequential(layers)


def vgg(plan: Plan, hidden: Sequence[int], in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """VGG (Simonyan & Zisserman 2015, Table 1) for small images: batch norm, global average pooling.

    Takes [N, in_channels, image_size, image_size]; images smaller than 32x32 are padded to that. `hidden`
    gives the sizes of the hidden fully-connected layers, which have dropout. The original has two of 4096 units
    for 7x7x512 features; here there are 1x1x512 features. Without batch norm, 16 layers with PyTorch's initial
    weights would give all images nearly the same logits.
    """
    layers = OrderedDict(
        features=convolutional(plan, in_channels, batch_norm=True, extra_padding=padding_to_32(image_size)),
        avgpool=nn.AdaptiveAvgPool2d(1),
        classifier=fully_connected((512, *hidden, num_classes), dropout=0.5),
    )
    return nn.Sequential(layers)


def alexnet(in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """AlexNet with torchvision's widths (Krizhevsky 2014, arXiv:1404.5997), for small images.

    Takes [N, in_channels, image_size, image_size]; images smaller than 32x32 are padded to that. The first
    convolution is 5x5 with stride 1, not 11x11 with stride 4, and the last pooling leaves 3x3, not 6x6.
    """
    layers = OrderedDict(
        conv1=nn.Conv2d(in_channels, 64, 5, padding=2 + padding_to_32(image_size)),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, stride=2),
        conv2=nn.Conv2d(64, 192, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(3, stride=2),
        conv3=nn.Conv2d(192, 384, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(384, 256, 3, padding=1),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(256, 256, 3, padding=1),
        relu5=nn.ReLU(),
        pool5=nn.MaxPool2d(3, stride=2),
        classifier=fully_connected((256 * 3 * 3, 4096, 4096, num_classes), dropout=0.5),
    )
    return nn.Sequential(layers)


def wide_resnet(depth: int, factor: int, in_channels: int, num_classes: int) -> nn.Module:
    """The wide residual networks of Zagoruyko & Komodakis (2016, arXiv:1605.07146, Table 1), without dropout.

    Takes [N, in_channels, H, W]. `depth` is 6 * blocks + 4; `factor` widens the 16, 32 and 64 channels of the three
    stages. Batch norm and ReLU come before each convolution.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False))
    channels = 16
    for stage, width in enumerate((16 * factor, 32 * factor, 64 * factor), start=1):
        for block in range(1, (depth - 4) // 6 + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            layers[f"block{stage}_{block}"] = WideBlock(channels, width, stride)
            channels = width
    layers.update(
        bn=nn.BatchNorm2d(channels),
        relu=nn.ReLU(),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(channels, num_classes),
    )
    return nn.Sequential(layers)


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, added to the block's input. Where the number of channels
    changes, they are added to a 1x1 projection of the input (after the first norm and ReLU) instead.

    Takes and returns [N, C, H, W].
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.projection = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(active)
        return shortcut + self.conv2(self.relu2(self.bn2(self.conv1(active))))
