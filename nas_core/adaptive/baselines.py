"""Later static keyword networks, as super-networks of one edge for the same code."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from nas_core.audio.features import MFCC
from nas_core.supernet import Edge, SuperNetwork


class DSCNN(nn.Module):
    """DS-CNN-S of Zhang et al., Hello Edge (2017): depthwise-separable convolutions on 49 × 10.

    22,604 parameters once batch norm is folded (with 16,000 bytes of activations the 38.6 KB of
    the paper) and 2,656,768 multiply-adds (5.4 M operations) with the classifier. It uses a frame
    of the `mfcc` maps every 20 ms and ten coefficients; the paper's frames last 40 ms, not 30 ms.
    """

    features = 64

    def __init__(self, mfcc: MFCC | None = None):
        super().__init__()
        mfcc = mfcc or MFCC()
        self.every = max(1, round(0.020 * mfcc.rate / mfcc.hop))
        blocks = _unit(1, 64, (10, 4), 2)
        for _ in range(4):
            blocks += _unit(64, 64, 3, padding=1, groups=64) + _unit(64, 64, 1)
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, 64]` of maps `[B, 1, F, n_mfcc]`."""
        x = x[:, :, self.every // 2 :: self.every, :10][:, :, :49]  # [B, 1, 49, 10]
        sides: list[int] = []
        for size, kernel in ((x.shape[3], 4), (x.shape[2], 10)):  # TensorFlow's `SAME`: ⌈size / 2⌉
            total = max(0, 2 * (-(-size // 2) - 1) + kernel - size)
            sides += [total // 2, total - total // 2]
        return self.body(pad(x, sides))


class BCResNet(nn.Module):
    """BC-ResNet-1 of Kim et al., Broadcasted residual learning (2021), on 40 log-mel bands.

    9,232 parameters with a classifier of 12 classes (the paper's 9.2 k) and 2,482,156 multiply-adds
    in its convolutions; the paper's 3.6 M also count norms (4 per element) and means. 161,600 more
    turn MFCCs back into log-mel energies by the transpose of the DCT.
    """

    features = 32
    undo: Tensor

    def __init__(self, mfcc: MFCC | None = None):
        super().__init__()
        mfcc = mfcc or MFCC()
        self.register_buffer("undo", mfcc.dct.T.contiguous(), persistent=False)
        layers, inputs = _unit(1, 16, 5, (2, 1), padding=2), 16
        for stage, (count, channels) in enumerate(((2, 8), (2, 12), (4, 16), (4, 20))):
            for i in range(count):
                stride = 2 if stage in (1, 2) and i == 0 else 1
                layers.append(_Broadcast(inputs, channels, stride, 2**stage))
                inputs = channels
        layers += [nn.Conv2d(20, 20, 5, padding=(0, 2), groups=20, bias=False), *_unit(20, 32, 1)]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, 32]` of maps `[B, 1, F, n_mfcc]`."""
        return self.body((x @ self.undo).transpose(2, 3))


class _Broadcast(nn.Module):
    """y = x + f2(x) + broadcast(f1(mean over frequency of f2(x))); no x where channels change."""

    def __init__(self, inputs: int, channels: int, stride: int, dilation: int):
        super().__init__()
        c, self.same = channels, inputs == channels
        widen = [] if self.same else _unit(inputs, c, 1)
        over_frequency = nn.Conv2d(c, c, (3, 1), (stride, 1), (1, 0), groups=c, bias=False)
        self.f2 = nn.Sequential(*widen, over_frequency, _SubSpectralNorm(c))
        over_time = nn.Conv2d(c, c, (1, 3), 1, (0, dilation), (1, dilation), groups=c, bias=False)
        mixing = nn.Conv2d(c, c, 1, bias=False)
        self.f1 = nn.Sequential(over_time, nn.BatchNorm2d(c), nn.SiLU(), mixing, nn.Dropout2d(0.1))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.f2(x)
        out = wide + self.f1(wide.mean(2, keepdim=True))
        return torch.relu(out + x if self.same else out)


class _SubSpectralNorm(nn.Module):
    """Batch norm of its own for each of five groups of neighbouring frequency bands."""

    def __init__(self, channels: int, bands: int = 5):
        super().__init__()
        self.bands = bands
        self.norm = nn.BatchNorm2d(channels * bands)

    def forward(self, x: Tensor) -> Tensor:
        b, c, f, t = x.shape
        return self.norm(x.reshape(b, c * self.bands, f // self.bands, t)).reshape(x.shape)


def _unit(inputs: int, outputs: int, kernel: Any, stride: Any = 1, **options) -> list[nn.Module]:
    """Convolution without bias, batch norm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, bias=False, **options)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def as_trunk(body: DSCNN | BCResNet, mfcc: MFCC | None = None) -> SuperNetwork:
    """A super-network whose only edge is `body`: static models run through the same code."""
    shape = (1, *(mfcc or MFCC()).shape)
    edge = Edge("input", "features", body, type(body).__name__, "body")
    return SuperNetwork([edge], "input", "features", input_shape=shape, name=type(body).__name__)
