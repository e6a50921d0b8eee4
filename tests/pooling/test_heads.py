"""Pooling heads against closed forms, finite differences and the printed parameter counts."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch import nn

from nas_core.pooling import (
    BP,
    CBP,
    GAP,
    LRBP,
    MPN,
    SMSO,
    DeepO2P,
    classifier,
    covariance,
    log_euclidean,
    matrix_log,
    matrix_sqrt,
    newton_schulz_sqrt,
    region_covariance,
)


def heads(c=6, classes=5):
    return {
        "GAP": GAP(c),
        "BP": BP(c),
        "DeepO2P": DeepO2P(c),
        "MPN": MPN(c),
        "MPN, Newton–Schulz": MPN(c, iterations=7),
        "CBP-RM": CBP(c, 8, "rm"),
        "CBP-TS": CBP(c, 8, "ts"),
        "LRBP": LRBP(c, classes, m=4, rank=2),
        "SMSO": SMSO(c, 3, path="covariance"),
        "SMSO-alt": SMSO(c, 3),
        "SMSO, released": SMSO(c, 3, variant="released"),
    }


@pytest.mark.parametrize("name", heads())
def test_shape_and_gradient(name):
    torch.manual_seed(0)
    head = heads()[name].double()
    x = torch.randn(3, 6, 3, 4, dtype=torch.double, requires_grad=True)
    assert head(x).shape == (3, head.dim)
    assert torch.autograd.gradcheck(head, (x,), atol=1e-4)
    assert head.macs(12) > 0


def test_covariance_is_numpys():
    x = torch.randn(2, 4, 3, 5, dtype=torch.double)
    for image, got in zip(x, covariance(x), strict=True):
        assert np.allclose(got, np.cov(image.flatten(1).numpy()))


def spd(batch=3, c=7):
    a = torch.randn(batch, c, 2 * c, dtype=torch.double)
    return a @ a.transpose(1, 2) / (2 * c)


def test_matrix_functions_are_scipys():
    y = spd()
    for m, root, log in zip(y, matrix_sqrt(y), matrix_log(y), strict=True):
        assert np.allclose(root, linalg.sqrtm(m.numpy()).real, atol=1e-8)
        assert np.allclose(log, linalg.logm(m.numpy()).real, atol=1e-8)


def test_newton_schulz_agrees_with_the_eigendecomposition():
    y = spd()
    errors = [(newton_schulz_sqrt(y, k) - matrix_sqrt(y)).abs().max() for k in (5, 10, 20)]
    assert errors[0] > errors[1] and errors[2] < 1e-10


@pytest.mark.parametrize("function", [matrix_sqrt, matrix_log])
def test_gradient_survives_equal_eigenvalues(function):
    """Autograd through `eigh` gives NaN here."""
    y = (2 * torch.eye(4, dtype=torch.double))[None].requires_grad_()
    assert torch.autograd.gradcheck(lambda m: function((m + m.transpose(1, 2)) / 2), (y,))


def test_matrix_log_of_a_singular_covariance_is_finite():
    x = torch.randn(1, 9, 2, 2, requires_grad=True)  # rank 3 of 9
    out = matrix_log(covariance(x))
    out.sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize(("sketch", "limit"), [("rm", 0.06), ("ts", 0.06)])
def test_sketch_keeps_the_polynomial_kernel(sketch, limit):
    torch.manual_seed(0)
    head = CBP(32, 8192, sketch)
    x, y = nn.functional.normalize(torch.randn(2, 50, 32), dim=2)
    got = (head.sketched(x) * head.sketched(y)).sum(1)
    assert ((got - (x * y).sum(1) ** 2).abs() < limit).all()


def test_tensor_sketch_is_the_circular_convolution_of_count_sketches():
    head = CBP(5, 8, "ts").double()
    x = torch.randn(5, dtype=torch.double)
    first, second = np.zeros(8), np.zeros(8)
    for i in range(5):
        first[head.buckets[0, i]] += head.signs[0, i, 0] * x[i]
        second[head.buckets[1, i]] += head.signs[1, i, 0] * x[i]
    want = [sum(first[i] * second[(k - i) % 8] for i in range(8)) for k in range(8)]
    assert np.allclose(head.sketched(x[None])[0], want)


# ------------------------------------------------------------------------------------- SMSO


@pytest.mark.parametrize("transform", ["sqrt", "log", "cbrt", "none"])
def test_both_paths_of_smso_are_equal(transform):
    torch.manual_seed(0)
    alt, cov = (SMSO(16, 24, path=p, transform=transform) for p in ("alt", "covariance"))
    cov.load_state_dict(alt.state_dict())
    x = torch.randn(4, 16, 7, 7) + 3  # a mean that must not matter
    torch.testing.assert_close(alt(x), cov(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(alt(x), alt(x - x.mean((2, 3), keepdim=True)), rtol=1e-3, atol=1e-4)


def test_smso_alt_forms_no_covariance():
    """No tensor that its forward or backward makes has c × c entries per image."""
    c = 64
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,))
                         if isinstance(t, torch.Tensor))  # fmt: skip
            return out

    x = torch.randn(2, c, 3, 3, requires_grad=True)
    with Watch():
        SMSO(c, 4)(x).sum().backward()
    assert max(sizes) < c * c
    sizes.clear()
    with Watch():
        SMSO(c, 4, path="covariance")(x)
    assert max(sizes) >= 2 * c * c


def sampled(n, draws=4000, c=5):
    """Quadratic forms of Gaussian maps with a covariance that is not the identity."""
    torch.manual_seed(1)
    mix = torch.randn(c, c, dtype=torch.double)
    sigma = mix @ mix.t()
    head = SMSO(c, 1).double()
    x = mix @ torch.randn(draws, c, n, dtype=torch.double)
    w = head.weight[:, 0]
    q = head.quadratic(x[..., None]).detach()[:, 0] / (w @ sigma @ w).item()
    return q.numpy()


def test_quadratic_form_is_chi_squared_with_n_minus_1_degrees():
    q = sampled(196)
    assert stats.kstest(q, stats.chi2(195).cdf).pvalue > 0.01
    assert stats.kstest(q, stats.chi2(196).cdf).pvalue < 0.05


def test_root_makes_it_gaussian():
    head = SMSO(5, 1)
    for n in (9, 196):
        q = torch.from_numpy(sampled(n))
        z = head._normal(q, n - 1)
        assert abs(stats.skew(z)) < abs(stats.skew(q)) / 3
        assert 0.9 < z.std() < 1.1 and abs(z.mean()) < 0.1
    assert abs(stats.skew(sampled(9)) - math.sqrt(8 / 8)) < 0.15  # χ²_k has skewness √(8/k)


def test_equation_1_6_as_printed_is_off():
    """With the normalized covariance of eq. 1.1 the root is n − 1 times too small."""
    n = 196
    z = torch.from_numpy(sampled(n)) / (n - 1)
    printed = (2 * z).sqrt() - math.sqrt(2 * n - 1)
    assert abs(printed.mean() + 18.4) < 0.1 and printed.std() < 0.1


def test_gamma_stays_positive():
    head = SMSO(4, 3)
    with torch.no_grad():
        head.log_gamma.fill_(-50.0)
    assert (head.log_gamma.exp() > 0).all()


def test_released_variant_has_no_centering():
    head = SMSO(4, 3, variant="released")
    x = torch.randn(2, 4, 3, 3)
    assert not torch.allclose(head(x), head(x + 1), rtol=1e-2)


# ---------------------------------------------------------------- parameter counts of table 1.1


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_table_1_1():
    c, k = 512, 23
    assert c * c * k // 2 == pytest.approx(3.015e6, rel=1e-3)  # BP, the symmetric half
    assert k * 8192 + 2 * c == 189_440  # CBP, its 2c signs and buckets counted
    assert count(LRBP(c, k)) - k == 69_600 and pytest.approx(68, rel=1e-3) == 69_600 / 1024
    assert 4096 * 4096 + 7 * 7 * 512 * 4096 + k * 4096 == pytest.approx(119.63e6, rel=1e-4)
    for p in (64, 2048):
        net = classifier(SMSO(256, p, scale=False, shift=False), k)
        assert count(net) - k == 256 * p + k * p
    assert 256 * 2048 + k * 2048 == 571_392  # printed as 0.057 M: a decimal slip of 0.57 M


def test_macs_are_those_of_the_matrix_products():
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(1, 16, 7, 7)
    for head in (BP(16), MPN(16, 5), SMSO(16, 8), SMSO(16, 8, path="covariance")):
        with FlopCounterMode(display=False) as counter:
            head(x)
        counted = counter.get_total_flops() / 2
        assert counted <= head.macs(49) <= 1.15 * counted + 49 * 8, head


# -------------------------------------------------------------------------- inputs and descriptor


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\[B, c, h, w\].*\[2, 3\]"):
        GAP(3)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="two positions"):
        MPN(3)(torch.zeros(2, 3, 1, 1))
    with pytest.raises(ValueError, match="transform is 'exp'"):
        SMSO(3, 2, transform="exp")
    with pytest.raises(ValueError, match="rank is 3"):
        LRBP(3, 2, rank=3)
    with pytest.raises(ValueError, match="scores 2 classes"):
        classifier(LRBP(3, 2), 5)
    with pytest.raises(ValueError, match="dim is 0"):
        SMSO(3, 0)


def test_region_covariance_is_positive_and_tells_textures_apart():
    """Log-Euclidean means of descriptors separate what mean grey values cannot."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 1, 16, 16, generator=generator)
    stripes = noise.mean(3, keepdim=True) * 4 + 0.3 * noise  # rows vary, columns hardly
    y = region_covariance(torch.cat([noise, stripes]))
    assert y.shape == (400, 8, 8) and torch.linalg.eigvalsh(y.double()).min() > -1e-5
    labels = torch.arange(2).repeat_interleave(200)
    train = torch.arange(400) % 2 == 0

    def nearest_mean(features):
        means = torch.stack([features[train & (labels == k)].mean(0) for k in (0, 1)])
        return (torch.cdist(features[~train], means).argmin(1) == labels[~train]).float().mean()

    raw = torch.cat([noise, stripes]).mean((2, 3))
    assert nearest_mean(log_euclidean(y.double())) > 0.95 > 0.7 > nearest_mean(raw)


def test_log_euclidean_distance():
    a, b = spd(1), spd(1)
    want = np.linalg.norm(linalg.logm(a[0].numpy()) - linalg.logm(b[0].numpy()))
    assert torch.dist(log_euclidean(a), log_euclidean(b)).item() == pytest.approx(want, rel=1e-6)
