"""Pooling a feature map `[B, c, h, w]` into a vector `[B, d]`: first- and second-order heads.

First-order pooling keeps the mean of every channel. Second-order pooling keeps how channels vary
together, the c × c covariance over the n = h·w positions, and pays for it with c² numbers per
image. The heads differ in how they tame that matrix: by a matrix function (DeepO2P, MPN), by a
random sketch (CBP), inside a bilinear classifier (LRBP), or by p trained quadratic forms whose
distribution is known (SMSO; thesis chapter 1).

Every head is an `nn.Module` with `dim`, the length of its vector, and `macs(n)`, the
multiply-adds of one image with n positions; its parameters are counted like any module's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EIGEN = 9  # c³ multiply-adds of a symmetric eigendecomposition with vectors, by the QR method


class Pooling(nn.Module):
    """What all heads share: `dim`, the length of the vector, and `macs(n)`."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        if channels < 1 or dim < 1:
            raise ValueError(f"channels is {channels} and dim is {dim}; both must be at least 1")
        self.channels, self.dim = channels, dim

    def macs(self, n: int) -> int:
        """Multiply-adds of one image with n = h·w positions."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.channels} → {self.dim}"


def positions(x: Tensor) -> Tensor:
    """A feature map `[B, c, h, w]` as n = h·w samples of c channels, `[B, n, c]`."""
    if x.dim() != 4:
        raise ValueError(f"a feature map has shape [B, c, h, w]; this one has {list(x.shape)}")
    return x.flatten(2).transpose(1, 2)


def covariance(x: Tensor) -> Tensor:
    """Covariance over positions, `[B, c, h, w] → [B, c, c]` (eq. 1.1); needs two positions."""
    samples = positions(x)
    if samples.shape[1] < 2:
        raise ValueError("a covariance needs at least two positions; this map has one")
    centered = samples - samples.mean(1, keepdim=True)
    return centered.transpose(1, 2) @ centered / (samples.shape[1] - 1)


def signed_sqrt(z: Tensor) -> Tensor:
    """sign(z)·√|z|, element by element, smooth at 0, where the root itself is not."""
    return z / (z.square() + 1e-10) ** 0.25


def upper_triangle(matrix: Tensor) -> Tensor:
    """The c(c+1)/2 different entries of symmetric matrices `[B, c, c]`, as `[B, c(c+1)/2]`."""
    rows, columns = torch.triu_indices(*matrix.shape[-2:], device=matrix.device)
    return matrix[:, rows, columns]


# ------------------------------------------------------------------ functions of a whole matrix


class _Spectral(torch.autograd.Function):
    """V f(λ) Vᵀ of symmetric matrices, with a gradient that survives equal eigenvalues.

    Autograd through `eigh` divides by λ_i − λ_j. The derivative of a spectral function needs only
    the divided differences (f(λ_i) − f(λ_j)) / (λ_i − λ_j), which tend to f'(λ) (Daleckii–Krein).
    """

    @staticmethod
    def forward(ctx, matrix: Tensor, f: Callable, derivative: Callable) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)  # [B, c], [B, c, c]
        image = f(values)
        gap = values.unsqueeze(2) - values.unsqueeze(1)  # [B, c, c]
        close = gap.abs() < 1e-6 * values.abs().amax(1)[:, None, None]
        middle = (values.unsqueeze(2) + values.unsqueeze(1)) / 2
        quotient = (image.unsqueeze(2) - image.unsqueeze(1)) / gap.masked_fill(close, 1.0)
        ctx.save_for_backward(vectors, torch.where(close, derivative(middle), quotient))
        return (vectors * image.unsqueeze(1)) @ vectors.transpose(1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor):
        vectors, quotient = ctx.saved_tensors
        grad = (grad + grad.transpose(1, 2)) / 2  # the input is symmetric
        inner = vectors.transpose(1, 2) @ grad @ vectors * quotient
        return vectors @ inner @ vectors.transpose(1, 2), None, None


def matrix_log(matrix: Tensor, floor: float = 1e-5) -> Tensor:
    """Logarithm of symmetric positive matrices `[B, c, c]`; eigenvalues below `floor` count as it.

    With fewer positions than channels a covariance is singular, so a floor is needed.
    """
    return _Spectral.apply(
        matrix,
        lambda v: v.clamp(min=floor).log(),
        lambda v: torch.where(v > floor, 1 / v.clamp(min=floor), 0.0),
    )


def matrix_sqrt(matrix: Tensor, floor: float = 1e-10) -> Tensor:
    """Square root of symmetric positive matrices `[B, c, c]` by their eigenvalues."""
    return _Spectral.apply(
        matrix,
        lambda v: v.clamp(min=floor).sqrt(),
        lambda v: torch.where(v > floor, 0.5 * v.clamp(min=floor).rsqrt(), 0.0),
    )


def newton_schulz_sqrt(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Square root by the coupled Newton–Schulz iteration: matrix products only.

    It converges where all eigenvalues lie in (0, 2), so the matrix is divided by its trace first;
    each iteration roughly doubles the correct digits of the large eigenvalues, and small ones
    need more iterations.
    """
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=1e-12)
    root, inverse = matrix / trace, eye.expand_as(matrix)
    for _ in range(iterations):
        step = (3 * eye - inverse @ root) / 2
        root, inverse = root @ step, step @ inverse
    return root * trace.sqrt()


# ------------------------------------------------------------------------------------ the heads


class GAP(Pooling):
    """Global average pooling, the first-order baseline: the mean of every channel."""

    def __init__(self, channels: int):
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return positions(x).mean(1)

    def macs(self, n: int) -> int:
        return self.channels  # one division a channel; sums have no product


class BP(Pooling):
    """Bilinear pooling (Lin et al., 2015): vec(XᵀX), signed square root, unit length."""

    def __init__(self, channels: int):
        super().__init__(channels, channels**2)

    def forward(self, x: Tensor) -> Tensor:
        samples = positions(x)  # [B, n, c]
        gram = samples.transpose(1, 2) @ samples / samples.shape[1]  # [B, c, c]
        return F.normalize(signed_sqrt(gram.flatten(1)))

    def macs(self, n: int) -> int:
        return n * self.channels**2


class DeepO2P(Pooling):
    """Logarithm of the covariance matrix (Ionescu et al., 2015), all c² entries."""

    def __init__(self, channels: int, floor: float = 1e-3):
        super().__init__(channels, channels**2)
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        return matrix_log(covariance(x), self.floor).flatten(1)

    def macs(self, n: int) -> int:
        return n * self.channels**2 + (EIGEN + 1) * self.channels**3


class MPN(Pooling):
    """Square root of the covariance matrix (Li et al., 2017), its upper triangle.

    Args:
        iterations: of Newton–Schulz; 0 uses the eigendecomposition of the source.
    """

    def __init__(self, channels: int, iterations: int = 0):
        super().__init__(channels, channels * (channels + 1) // 2)
        self.iterations = iterations

    def forward(self, x: Tensor) -> Tensor:
        y = covariance(x)
        root = newton_schulz_sqrt(y, self.iterations) if self.iterations else matrix_sqrt(y)
        return upper_triangle(root)

    def macs(self, n: int) -> int:
        products = 3 * self.iterations if self.iterations else EIGEN + 1
        return n * self.channels**2 + products * self.channels**3


class CBP(Pooling):
    """Compact bilinear pooling (Gao et al., 2016): a fixed random sketch of x xᵀ in d numbers.

    The inner product of two sketches estimates ⟨x, y⟩², that of the full matrices. "rm" multiplies
    two random ±1 projections (random Maclaurin); "ts" convolves two count sketches by FFT (tensor
    sketch). Sums over positions, then signed square root and unit length, as bilinear pooling.
    """

    signs: Tensor
    buckets: Tensor

    def __init__(self, channels: int, dim: int = 8192, sketch: Literal["rm", "ts"] = "ts"):
        super().__init__(channels, dim)
        if sketch not in ("rm", "ts"):
            raise ValueError(f'sketch is {sketch!r}; it must be "rm" or "ts"')
        self.sketch = sketch
        signs = torch.randint(0, 2, (2, channels, dim if sketch == "rm" else 1)) * 2.0 - 1.0
        self.register_buffer("signs", signs)
        self.register_buffer("buckets", torch.randint(0, dim, (2, channels)))

    def sketched(self, samples: Tensor) -> Tensor:
        """Sketch of every sample, `[..., c] → [..., d]`."""
        if self.sketch == "rm":
            first, second = samples @ self.signs[0], samples @ self.signs[1]
            return first * second / math.sqrt(self.dim)
        return torch.fft.irfft(self._spectrum(samples), n=self.dim)

    def _spectrum(self, samples: Tensor) -> Tensor:
        """Fourier transform of the sketch: convolution has become a product, `[..., d/2 + 1]`."""
        halves = []
        for signs, buckets in zip(self.signs[..., 0], self.buckets, strict=True):
            counts = samples.new_zeros(*samples.shape[:-1], self.dim)
            halves.append(torch.fft.rfft(counts.index_add(-1, buckets, samples * signs)))
        return halves[0] * halves[1]

    def forward(self, x: Tensor) -> Tensor:
        samples = positions(x)
        if self.sketch == "rm":
            pooled = self.sketched(samples).mean(1)
        else:  # the transform is linear: sum the spectra first, transform back once
            pooled = torch.fft.irfft(self._spectrum(samples).mean(1), n=self.dim)
        return F.normalize(signed_sqrt(pooled))

    def macs(self, n: int) -> int:
        if self.sketch == "rm":
            return n * (2 * self.channels * self.dim + self.dim)
        fft = 2 * self.dim * math.ceil(math.log2(self.dim))  # real multiply-adds of one transform
        return n * (2 * self.channels + 2 * fft + 2 * self.dim) + fft


class LRBP(Pooling):
    """Low-rank bilinear pooling (Kong & Fowlkes, 2017): its classifier is part of it.

    The score of class k is ‖V_k⁺ᵀ Pᵀ Xᵀ‖² − ‖V_k⁻ᵀ Pᵀ Xᵀ‖² + b_k with P `[c, m]` shared and V_k
    of rank r, half of it positive; no c × c matrix is formed. So `dim` is the number of classes
    and no linear layer follows. The source trains it with a hinge loss.
    """

    def __init__(self, channels: int, classes: int, m: int = 100, rank: int = 8):
        super().__init__(channels, classes)
        if rank < 2 or rank % 2:
            raise ValueError(f"rank is {rank}; it must be even, half of it is for negative scores")
        self.m, self.rank = m, rank
        self.project = nn.Parameter(torch.randn(channels, m) / math.sqrt(channels))
        self.factors = nn.Parameter(torch.randn(classes, m, rank) / math.sqrt(m))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        small = positions(x) @ self.project  # [B, n, m]
        gram = small.transpose(1, 2) @ small / small.shape[1]  # [B, m, m]
        energy = torch.einsum("kmr,bmo,kor->bkr", self.factors, gram, self.factors)
        plus, minus = energy.chunk(2, dim=2)
        return plus.sum(2) - minus.sum(2) + self.bias

    def macs(self, n: int) -> int:
        per_class = self.rank * (self.m**2 + self.m)
        return n * (self.channels * self.m + self.m**2) + self.dim * per_class


Transform = Literal["sqrt", "log", "cbrt", "none"]


class SMSO(Pooling):
    """Statistically motivated second-order pooling: p trained quadratic forms (eqs 1.3–1.11).

    With q_j = Σ_i (w_jᵀ x̃_i)² over the n centered positions,

        z'_j = √(α_j q_j) − √(2(n−1) − 1),   α_j = 2 / w_jᵀΣw_j,   z''_j = β_j + γ_j z'_j.

    If positions are Gaussian, q_j / w_jᵀΣw_j is χ² with n − 1 degrees of freedom, and the root
    makes it nearly normal with variance 1. Σ is taken as the identity, so batch normalization
    belongs in front of this layer. Equation 1.6 is printed for the normalized covariance and n
    degrees of freedom; the scale above is the one under which its mean and variance come out.

    Args:
        p: length of the vector.
        path: "alt" computes q_j by a 1 × 1 convolution and never forms the c × c matrix;
            "covariance" goes through it. Both give the same values.
        transform: what makes χ² normal: the square root, the logarithm, the cube root, or nothing.
        scale, shift: whether γ_j > 0 and β_j are trained (rows of table 1.5).
        variant: "released" is the layer as the authors published it: w'Yw, then γ and β, then
            the signed root √(2|·|), with the mean left in on the "alt" path.
    """

    def __init__(
        self,
        channels: int,
        p: int = 64,
        *,
        path: Literal["alt", "covariance"] = "alt",
        transform: Transform = "sqrt",
        scale: bool = True,
        shift: bool = True,
        variant: Literal["thesis", "released"] = "thesis",
    ):
        super().__init__(channels, p)
        for name, value, allowed in (
            ("path", path, ("alt", "covariance")),
            ("transform", transform, ("sqrt", "log", "cbrt", "none")),
            ("variant", variant, ("thesis", "released")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {allowed}")
        self.path, self.transform, self.variant = path, transform, variant
        self.weight = nn.Parameter(torch.randn(channels, p) / math.sqrt(channels))
        self.log_gamma = nn.Parameter(torch.zeros(p)) if scale else None
        self.beta = nn.Parameter(torch.zeros(p)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == "released":
            return self._released(x)
        n = x.shape[2] * x.shape[3]
        q = self.quadratic(x)  # [B, p]
        z = q / (self.weight.square().sum(0) + 1e-12)  # χ² with n − 1 degrees of freedom
        return self._affine(self._normal(z, n - 1))

    def quadratic(self, x: Tensor) -> Tensor:
        """q_j = Σ_i (w_jᵀ x̃_i)² = (n − 1) w_jᵀ Y w_j, `[B, p]`."""
        if self.path == "covariance":
            y = covariance(x) * (positions(x).shape[1] - 1)  # [B, c, c]
            return ((y @ self.weight) * self.weight).sum(1)
        s = self._project(x)  # [B, p, n]
        return (s - s.mean(2, keepdim=True)).square().sum(2)

    def _project(self, x: Tensor) -> Tensor:
        """The 1 × 1 convolution, `[B, c, h, w] → [B, p, n]`; centering may come after it."""
        return F.conv2d(x, self.weight.t()[:, :, None, None]).flatten(2)

    def _normal(self, z: Tensor, dof: int) -> Tensor:
        """A χ² variable with `dof` degrees of freedom, brought to mean 0 and variance 1."""
        if self.transform == "sqrt":  # Fisher: √(2z) is nearly N(√(2k − 1), 1)
            return (2 * z + 1e-8).sqrt() - math.sqrt(max(2 * dof - 1, 0))
        if self.transform == "cbrt":  # Wilson–Hilferty
            third = (z / dof + 1e-8) ** (1 / 3)
            return (third - (1 - 2 / (9 * dof))) / math.sqrt(2 / (9 * dof))
        if self.transform == "log":  # Bartlett–Kendall
            return ((z + 1e-8).log() - math.log(dof)) / math.sqrt(2 / dof)
        return (z - dof) / math.sqrt(2 * dof)

    def _affine(self, z: Tensor) -> Tensor:
        z = z if self.log_gamma is None else z * self.log_gamma.exp()
        return z if self.beta is None else z + self.beta

    def _released(self, x: Tensor) -> Tensor:
        if self.path == "alt":
            form = self._project(x).square().mean(2)
        else:
            form = ((covariance(x) @ self.weight) * self.weight).sum(1)
        form = self._affine(form)
        return form.sign() * (2 * form.abs() + 1e-8).sqrt()

    def macs(self, n: int) -> int:
        if self.path == "covariance":
            return n * self.channels**2 + self.dim * (self.channels**2 + self.channels)
        return n * self.channels * self.dim + n * self.dim


def classifier(
    pool: Pooling, classes: int, *, channels: int | None = None, batch_norm: bool = False
) -> nn.Sequential:
    """A classifier on feature maps: optional 1 × 1 convolution and batch norm, pool, linear layer.

    Args:
        channels: of the incoming map, if a convolution is to reduce them to those of `pool`.
        batch_norm: normalize the channels before pooling ("initial BN" of table 1.7).
    """
    layers: list[nn.Module] = []
    if channels is not None:
        layers.append(nn.Conv2d(channels, pool.channels, 1, bias=False))
    if batch_norm:
        layers.append(nn.BatchNorm2d(pool.channels))
    layers.append(pool)
    if not isinstance(pool, LRBP):
        layers.append(nn.Linear(pool.dim, classes))
    elif pool.dim != classes:
        raise ValueError(f"this LRBP scores {pool.dim} classes, {classes} are asked for")
    return nn.Sequential(*layers)


# -------------------------------------------------------- region covariance (introduction, fig. 3)

REGION_FEATURES = ("x", "y", "|Ix|", "|Iy|", "|∇I|", "|Ixx|", "|Iyy|", "angle")


def region_covariance(images: Tensor) -> Tensor:
    """Covariance descriptor of grey images (Tuzel et al., 2007), `[B, 1, H, W] → [B, 8, 8]`.

    The eight features of a pixel are its position (0…1), its first and second derivatives and the
    direction of its gradient.
    """
    if images.dim() != 4 or images.shape[1] != 1 or min(images.shape[2:]) < 3:
        raise ValueError(
            f"grey images have shape [B, 1, H, W] with H, W ≥ 3, not {list(images.shape)}"
        )
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    left, right = padded[:, :, 1:-1, :-2], padded[:, :, 1:-1, 2:]
    above, below = padded[:, :, :-2, 1:-1], padded[:, :, 2:, 1:-1]
    ix, iy = (right - left) / 2, (below - above) / 2
    ixx, iyy = right - 2 * images + left, below - 2 * images + above
    height, width = images.shape[2:]
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    features = [
        x.to(images).expand_as(images), y.to(images).expand_as(images), ix.abs(), iy.abs(),
        (ix.square() + iy.square() + 1e-12).sqrt(), ixx.abs(), iyy.abs(),
        torch.atan2(iy.abs(), ix.abs()),
    ]  # fmt: skip
    return covariance(torch.cat(features, 1))


def log_euclidean(matrices: Tensor, floor: float = 1e-6) -> Tensor:
    """Symmetric positive matrices `[B, c, c]` as vectors whose distance is the log-Euclidean one.

    The upper triangle of the logarithm; entries off the diagonal count twice in the matrix norm,
    so they carry √2.
    """
    c = matrices.shape[-1]
    weight = torch.full((c, c), math.sqrt(2), dtype=matrices.dtype, device=matrices.device)
    weight.fill_diagonal_(1.0)
    return upper_triangle(matrix_log(matrices, floor) * weight)
