"""Later static keyword networks, as super-networks of one edge for the same code."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from nas_core.audio.features import MFCC
from nas_core.supernet import Edge, SuperNetwork


class DSCNN(nn.Module):
    """DS-CNN-S of Zhang et al., Hello Edge (2017): depthwise-separable convolutions on 49 × 10.

    22,604 parameters once batch norm is folded (with 16,000 bytes of activations the 38.6 KB of
    the paper) and 2,656,768 multiply-adds (5.4 M operations) with the classifier.

    Args:
        mfcc: of the maps; every 20 ms and the first ten coefficients are used. The paper takes
            windows of 40 ms instead of 30 ms.
    """

    features = 64

    def __init__(self, mfcc: MFCC | None = None):
        super().__init__()
        mfcc = mfcc or MFCC()
        self.every = max(1, round(0.020 * mfcc.rate / mfcc.hop))
        blocks: list[nn.Module] = [nn.Conv2d(1, 64, (10, 4), 2, bias=False), *_norm(64)]
        for _ in range(4):
            blocks += [nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), *_norm(64)]
            blocks += [nn.Conv2d(64, 64, 1, bias=False), *_norm(64)]
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
    invert the DCT: its transpose turns MFCCs back into log-mel energies, which are smooth where
    coefficients were left out.
    """

    features = 32
    undo: Tensor

    def __init__(self, mfcc: MFCC | None = None):
        super().__init__()
        mfcc = mfcc or MFCC()
        self.register_buffer("undo", mfcc.dct.T.contiguous(), persistent=False)
        layers: list[nn.Module] = [
            nn.Conv2d(1, 16, 5, (2, 1), 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        ]  # fmt: skip
        inputs = 16
        for stage, (count, channels) in enumerate(((2, 8), (2, 12), (4, 16), (4, 20))):
            for i in range(count):
                stride = 2 if stage in (1, 2) and i == 0 else 1
                layers.append(_Broadcast(inputs, channels, stride, 2**stage))
                inputs = channels
        layers += [
            nn.Conv2d(20, 20, 5, padding=(0, 2), groups=20, bias=False),
            nn.Conv2d(20, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ]  # fmt: skip
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, 32]` of maps `[B, 1, F, n_mfcc]`."""
        return self.body((x @ self.undo).transpose(2, 3))


class _Broadcast(nn.Module):
    """y = x + f2(x) + broadcast(f1(mean over frequency of f2(x))); no x where channels change."""

    def __init__(self, inputs: int, channels: int, stride: int, dilation: int):
        super().__init__()
        self.same = inputs == channels
        widen = [] if self.same else [
            nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        ]  # fmt: skip
        self.f2 = nn.Sequential(
            *widen,
            nn.Conv2d(channels, channels, (3, 1), (stride, 1), (1, 0), groups=channels, bias=False),
            _SubSpectralNorm(channels),
        )
        self.f1 = nn.Sequential(
            nn.Conv2d(
                channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation),
                groups=channels, bias=False,
            ),
            nn.BatchNorm2d(channels), nn.SiLU(), nn.Conv2d(channels, channels, 1, bias=False),
            nn.Dropout2d(0.1),
        )  # fmt: skip

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
        grouped = self.norm(x.reshape(b, c * self.bands, f // self.bands, t))
        return grouped.reshape(b, c, f, t)


def _norm(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def as_trunk(body: DSCNN | BCResNet, mfcc: MFCC | None = None) -> SuperNetwork:
    """A super-network whose only edge is `body`: static models run through the same code."""
    shape = (1, *(mfcc or MFCC()).shape)
    edge = Edge("input", "features", body, type(body).__name__, "body")
    return SuperNetwork([edge], "input", "features", input_shape=shape, name=type(body).__name__)
