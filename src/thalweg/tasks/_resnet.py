"""Networks for images of 28×28 and 32×32."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Basic(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut without parameters (option A: every other pixel, new channels
    zero; He et al. 2015, arXiv:1512.03385, section 4.2)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.grow = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, inputs, h, w]`` to ``[batch, outputs, h/stride, w/stride]``."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grow:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.grow // 2, self.grow - self.grow // 2))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet-20, 32, 44, 56 for CIFAR-10: a stem, three stages of ``blocks`` at widths 16, 32, 64, pooling, ``linear``.
    Parameter names are those of the common checkpoints (github akamaster/pytorch_resnet_cifar10)."""

    def __init__(self, blocks: int, channels: int = 3, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        stages = [
            nn.Sequential(*(Basic(widths[i] if b == 0 else w, w, 2 if i and b == 0 else 1) for b in range(blocks)))
            for i, w in enumerate(widths[1:])
        ]
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[batch, channels, 32, 32]`` to logits ``[batch, classes]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class PlainNet(nn.Module):
    """Convolutions, pooling, two linear layers: no normalisation whose statistics could be blamed."""

    def __init__(self, channels: int = 1, width: int = 16, side: int = 28, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.hidden = nn.Linear(2 * width * (side // 4) ** 2, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[batch, channels, side, side]`` to logits ``[batch, classes]``."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv3(F.relu(self.conv2(x)))), 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 ``[n, channels, h, w]`` to float32 with the given mean and deviation per channel taken out."""
    shape = (1, -1, 1, 1)
    return images.float().div_(255).sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))
