"""ResNets (He et al. 2016) as torchvision has them, for machines without torchvision.

As networks of own code they are called ``benchmarks.resnet:resnet50``. A test holds them against torchvision's.
"""

from collections.abc import Sequence

from torch import Tensor, nn


class Block(nn.Module):
    """Convolutions with batch norm, and what they are added to: two of 3 x 3, or 1 x 1, 3 x 3, 1 x 1."""

    def __init__(self, channels: int, width: int, stride: int, narrow: bool) -> None:
        super().__init__()
        out = 4 * width if narrow else width
        kernels = ((1, 1), (3, stride), (1, 1)) if narrow else ((3, stride), (3, 1))
        layers: list[nn.Module] = []
        before = channels
        for i, (kernel, step) in enumerate(kernels):
            after = out if i == len(kernels) - 1 else width
            layers += [_convolution(before, after, kernel, step), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            before = after
        self.body = nn.Sequential(*layers[:-1])
        same = stride == 1 and channels == out
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(_convolution(channels, out, 1, stride), nn.BatchNorm2d(out))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H / stride, W / stride)."""
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


def _convolution(before: int, after: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def resnet(blocks: Sequence[int], narrow: bool, width: int = 64) -> nn.Module:
    """A ResNet without its classifier, (N, 3, H, W) → (N, D).

    Args:
        blocks: how many in each of the stages.
        narrow: blocks of three convolutions with a bottleneck.
        width: channels of the first stage.
    """
    stem = [_convolution(3, width, 7, 2), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    stages, channels = [], width
    for stage, count in enumerate(blocks):
        for i in range(count):
            stages.append(Block(channels, width << stage, 2 if stage and not i else 1, narrow))
            channels = (width << stage) * (4 if narrow else 1)
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def resnet50() -> nn.Module:
    """The network of the published experiments."""
    return resnet((3, 4, 6, 3), True)


def resnet18() -> nn.Module:
    """A smaller one."""
    return resnet((2, 2, 2, 2), False)


def tiny() -> nn.Module:
    """One for tests."""
    return resnet((1, 1), False, 8)
