"""Seven small families of images that stand in for CTrL's seven data sets.

The relations are those of the originals: real handwritten digits; the same digits on coloured
backgrounds; digits in the wild (coloured, cluttered); silhouettes of clothes; textures; coloured
objects with ten classes and with many. Images depend on the arguments alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial, reduce

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from nas_core.training import require

SPLITS = ("train", "val", "test")
DIGITS = tuple("0123456789")
SHAPES = ("disc", "square", "triangle", "ring", "cross", "star", "moon", "hourglass", "bars", "el")
HUES = ("red", "yellow", "green", "blue", "violet")
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat",
           "sandal", "shirt", "sneaker", "bag", "boot")  # fmt: skip
TEXTURES = ("banded", "striped", "diagonal", "chequered", "dotted",
            "ringed", "grainy", "blotchy", "meshed", "zigzagged")  # fmt: skip
# Backgrounds of the rainbow digits, RGB: pure colours, as CTrL has them. Each saturates a channel.
RAINBOW = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}

CLASSES: dict[str, tuple[str, ...]]
CLASSES = dict.fromkeys(("digits", "rainbow_digits", "wild_digits"), DIGITS)
CLASSES |= {"clothes": CLOTHES, "textures": TEXTURES, "objects": SHAPES}
CLASSES["many_objects"] = tuple(f"{hue} {shape}" for shape in SHAPES for hue in HUES)


def draw_family(
    family: str, per_class: int, *, size: int = 32, split: str = "train", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """`per_class` images of every class of a family, uint8 `[N, 3, size, size]`, and labels `[N]`.

    Splits share no handwritten digit and no random draw. Rainbow digits are white until `paint`.
    """
    require(family in CLASSES, "family", family, f"one of {', '.join(CLASSES)}")
    require(split in SPLITS, "split", split, f"one of {', '.join(SPLITS)}")
    require(per_class >= 1, "per_class", per_class, "at least 1")
    require(8 <= size <= 64, "size", size, "8 to 64 pixels")
    digest = hashlib.sha256(f"{family}/{split}/{seed}".encode()).digest()
    g = torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))
    y = torch.arange(len(CLASSES[family])).repeat(per_class)
    x = _DRAW[family](y, size, split, g)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8), y


def paint(digits: Tensor, background: int) -> Tensor:
    """White digits (uint8 `[N, 3, H, W]`) on a colour of `RAINBOW`: ink + (255 − ink) · colour.

    The background's channel is 255 everywhere, which no normalisation per task can undo.
    """
    require(
        0 <= background < len(RAINBOW), "background", background, f"a colour 0…{len(RAINBOW) - 1}"
    )
    colour = torch.tensor(list(RAINBOW.values())[background]).view(1, 3, 1, 1)
    return (digits + (255 - digits) * colour).round().to(torch.uint8)


@lru_cache
def _digit_bank() -> dict[str, list[Tensor]]:
    """Per split and class the 8×8 digits of scikit-learn, `[n, 8, 8]` in [0, 1]."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images, labels = torch.from_numpy(raw.images).float() / 16, torch.from_numpy(raw.target)
    bank: dict[str, list[Tensor]] = {split: [] for split in SPLITS}
    for c in range(10):
        own = images[labels == c]
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(c))]
        cut = [round(len(own) * part) for part in (0.6, 0.8)]  # 60 / 20 / 20 % of about 180
        for split, part in zip(SPLITS, own.tensor_split(cut), strict=True):
            bank[split].append(part)
    return bank


def _strokes(y: Tensor, size: int, split: str, g: torch.Generator, spread: float = 1.0) -> Tensor:
    """Ink of one digit per label `[N, size, size]`, moved, turned and scaled a little."""
    bank = _digit_bank()[split]
    ink = torch.empty(len(y), 8, 8)
    for c in range(10):
        rows = (y == c).nonzero().flatten()
        rounds = -(-len(rows) // len(bank[c]))  # every digit once before any is used twice
        order = torch.cat([torch.randperm(len(bank[c]), generator=g) for _ in range(rounds)])
        ink[rows] = bank[c][order[: len(rows)]]
    turn = (torch.rand(len(y), generator=g) - 0.5) * 0.3 * spread
    scale = 1.0 + (torch.rand(len(y), generator=g) - 0.5) * 0.2 * spread
    shift = (torch.rand(len(y), 2, 1, generator=g) - 0.5) * 0.25 * spread
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).view(-1, 2, 2)
    theta = torch.cat([rotation * scale.view(-1, 1, 1) * 1.15, shift], 2)
    grid = affine_grid(theta, [len(y), 1, size, size], align_corners=False)
    return grid_sample(ink.unsqueeze(1), grid, align_corners=False).squeeze(1)


def _digits(y: Tensor, size: int, split: str, g: torch.Generator) -> Tensor:
    return _strokes(y, size, split, g).unsqueeze(1).expand(-1, 3, -1, -1)


def _wild(y: Tensor, size: int, split: str, g: torch.Generator) -> Tensor:
    """A digit between the halves of two others, in two random colours, under noise."""
    n = len(y)
    ink = _strokes(y, size, split, g, 1.5)
    sides = _strokes(torch.randint(10, (2 * n,), generator=g), size, split, g, 1.5)
    left, right = sides.view(2, n, size, size).unbind()
    off = round(0.72 * size)
    ink = torch.maximum(ink, 0.8 * torch.cat([left[:, :, off:], 0 * left[:, :, :off]], 2))
    ink = torch.maximum(ink, 0.8 * torch.cat([0 * right[:, :, :off], right[:, :, :-off]], 2))
    colours = torch.rand(n, 2, 3, 1, 1, generator=g)
    weak = (colours[:, 0] - colours[:, 1]).abs().amax(1, keepdim=True) < 0.35
    front = torch.where(weak, (colours[:, 0] + 0.5) % 1, colours[:, 0])
    x = colours[:, 1] + ink.unsqueeze(1) * (front - colours[:, 1])
    slope = torch.linspace(-0.15, 0.15, size) * (torch.rand(n, 1, generator=g) * 2 - 1)
    return x + slope.view(n, 1, 1, size) + 0.06 * torch.randn(n, 3, size, size, generator=g)


def _plane(n: int, size: int, g: torch.Generator, turn: float, low: float, high: float, move=0.25):
    """Coordinates u, v `[n, size, size]` of randomly turned, scaled and moved objects."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    r = torch.rand(4, n, 1, 1, generator=g) * 2 - 1
    angle, scale = r[0] * turn, low + (r[1] + 1) / 2 * (high - low)
    x, y = x - r[2] * move, y - r[3] * move
    return (x * angle.cos() + y * angle.sin()) / scale, (y * angle.cos() - x * angle.sin()) / scale


def _and(*fields: Tensor) -> Tensor:  # positive where all fields are
    return reduce(torch.minimum, fields)


def _or(*fields: Tensor) -> Tensor:  # positive where one of the fields is
    return reduce(torch.maximum, fields)


def _by_class(y: Tensor, fields: Sequence[Callable[[], Tensor]], like: Tensor) -> Tensor:
    """`[N, size, size]`: every example's row of the field of its class."""
    out = torch.empty_like(like)
    for i, field in enumerate(fields):
        out[y == i] = field().expand_as(like)[y == i]
    return out


def _soft(inside: Tensor, size: int) -> Tensor:
    """Anti-aliased indicator of `inside > 0`."""
    return (inside * size / 3 + 0.5).clamp(0, 1)


def _shape(k: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Field of shape k (number in `SHAPES`): positive inside, about the distance to the edge."""
    r, angle = torch.hypot(u, v), torch.atan2(v, u)
    a, b, box = u.abs(), v.abs(), _or(u.abs(), v.abs())
    fields = [
        lambda: 0.8 - r,
        lambda: 0.72 - box,
        lambda: _and(0.6 - v, (v + 0.9) * 0.5 - a * 0.87),
        lambda: 0.22 - (r - 0.65).abs(),
        lambda: _or(_and(0.25 - a, 0.85 - b), _and(0.25 - b, 0.85 - a)),
        lambda: 0.58 + 0.3 * torch.cos(5 * angle) - r,
        lambda: _and(0.85 - r, torch.hypot(u - 0.4, v) - 0.62),
        lambda: _and(0.85 - b, b * 0.9 + 0.08 - a),
        lambda: _and(0.8 - box, 0.16 - ((v + 1.6) % 0.64 - 0.32).abs()),
        lambda: _and(0.8 - box, _or(-0.25 - u, v - 0.3)),
    ]
    return _by_class(k, fields, u)


def _hue(h: Tensor, value: Tensor, pale: Tensor) -> Tensor:
    """RGB `[N, 3, 1, 1]` of hue h in turns, brightness and paleness (all `[N]`)."""
    k = (h.view(-1, 1) * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6
    pure = 1 - torch.minimum(k, 4 - k).clamp(0, 1)
    return (value.view(-1, 1) * (pure + (1 - pure) * pale.view(-1, 1))).view(-1, 3, 1, 1)


def _objects(y: Tensor, size: int, split: str, g: torch.Generator, many: bool = False) -> Tensor:
    """Objects before a background of blurred colours, shaded and noisy; class = shape, and hue."""
    n, hue, shape = len(y), torch.rand(len(y), generator=g), y
    if many:  # five classes per shape, each with a hue that varies a little
        shape, hue = y // len(HUES), ((y % len(HUES)) / len(HUES) + (hue - 0.5) * 0.05) % 1
    u, v = _plane(n, size, g, 0.5, 0.55, 0.95)
    mask = _soft(_shape(shape, u, v), size).unsqueeze(1)
    r = torch.rand(5, n, generator=g)
    front = _hue(hue, 0.75 + 0.25 * r[0], 0.25 * r[1])
    ground = torch.rand(n, 3, 3, 3, generator=g) * 0.55 + 0.1
    ground = interpolate(ground, size=size, mode="bilinear", align_corners=True)
    shade = 1 - 0.25 * (v.unsqueeze(1).clamp(-1, 1) + 1) / 2
    x = ground + mask * (front * shade - ground)
    return x + 0.05 * torch.randn(n, 3, size, size, generator=g)


def _clothes(y: Tensor, size: int, split: str, g: torch.Generator) -> Tensor:
    """Grey silhouettes: boxes and wedges of slightly random proportions."""
    n = len(y)
    u, v = _plane(n, size, g, 0.08, 0.9, 1.05, 0.08)
    w = (torch.rand(3, n, 1, 1, generator=g) - 0.5) * 0.14
    a = u.abs()

    def box(left, right, top, bottom):
        across = (right - left) / 2 - (u - (left + right) / 2).abs()
        return _and(across, (bottom - top) / 2 - (v - (top + bottom) / 2).abs())

    torso = box(-0.42 + w[0], 0.42 - w[0], -0.75, 0.75 + w[1])
    slanted = 0.3 + w[0] - (a - 0.5 - 0.2 * (v + 0.4)).abs() * 1.6
    long_sleeves = _and(slanted, v + 0.75, 0.6 + w[2] - v)
    short_sleeves = _and(0.85 - a, v + 0.75, -0.2 + w[2] - v)
    collar = 0.2 - torch.hypot(u, v + 0.78)
    sole = box(-0.85, 0.85, 0.42, 0.58)
    shoe = _and(0.42 - v, v - 0.05 - 0.35 * u, 0.85 - a)
    handle = 0.07 - (torch.hypot(u, v + 0.1) - 0.45 - w[0]).abs()
    strap = 0.08 - ((v - 0.2 + w[1]) - 0.5 * a + 0.15).abs()
    legs = box(-0.4, -0.08 + w[0] / 2, -0.85, 0.85), box(0.08 - w[0] / 2, 0.4, -0.85, 0.85)
    silhouettes = [  # in the order of CLOTHES
        lambda: _or(_and(torso, -collar), short_sleeves),
        lambda: _or(box(-0.4, 0.4, -0.85, -0.5), *legs),
        lambda: _or(torso, long_sleeves),
        lambda: _and(0.88 - v.abs(), 0.22 + w[0] + 0.22 * (v + 0.85) - a),
        lambda: _and(_or(box(-0.45, 0.45, -0.8, 0.88), long_sleeves), a - 0.04),
        lambda: _or(sole, _and(strap, 0.75 - a)),
        lambda: _and(_or(torso, long_sleeves), _or(a - 0.03, v + 0.1)),
        lambda: _or(sole, shoe),
        lambda: _or(box(-0.7 + w[0], 0.7 - w[0], -0.1, 0.75), _and(handle, 0.1 - v)),
        lambda: _or(box(-0.1, 0.5, -0.85, 0.55), box(-0.75 + w[0], 0.5, 0.1, 0.55), sole),
    ]
    cloth = interpolate(torch.rand(n, 1, 4, 4, generator=g), size=size, mode="bilinear")
    grey = 0.45 + 0.3 * torch.rand(n, 1, 1, generator=g) + 0.3 * (cloth.squeeze(1) - 0.5)
    x = _soft(_by_class(y, silhouettes, u), size) * grey + 0.03 * torch.randn(
        n, size, size, generator=g
    )
    return x.unsqueeze(1).expand(-1, 3, -1, -1)


def _textures(y: Tensor, size: int, split: str, g: torch.Generator) -> Tensor:
    """Two colours mixed by a pattern of random frequency and phase."""
    n = len(y)
    u, v = _plane(n, size, g, 0.25, 0.8, 1.25, 1.0)
    f = 9 + 8 * torch.rand(n, 1, 1, generator=g)
    sine_u, sine_v = torch.sin(f * u), torch.sin(f * v)
    fine = torch.rand(n, 1, size, size, generator=g)
    coarse = interpolate(torch.rand(n, 1, 5, 5, generator=g), size=size, mode="bicubic")
    patterns = [  # in the order of TEXTURES
        lambda: sine_v,
        lambda: sine_u,
        lambda: torch.sin(f * (u + v) * 0.75),
        lambda: (sine_u * sine_v).sign() * 0.8,
        lambda: (sine_u * sine_v - 0.45) * 3,
        lambda: torch.sin(f * torch.hypot(u, v)),
        lambda: fine.squeeze(1) * 2 - 1,
        lambda: (coarse.squeeze(1) - 0.5) * 5,
        lambda: _or(sine_u, sine_v) * 2 - 1.2,
        lambda: torch.sin(f * (v + 0.35 * torch.asin(torch.sin(f * u * 0.6)))),
    ]
    mix = (_by_class(y, patterns, u).clamp(-1, 1).unsqueeze(1) + 1) / 2
    colours = torch.rand(n, 2, 3, 1, 1, generator=g) * 0.6
    x = colours[:, 0] + mix * (colours[:, 1] + 0.4 - colours[:, 0])
    return x + 0.08 * torch.randn(n, 3, size, size, generator=g)


_KINDS = (_digits, _digits, _wild, _clothes, _textures, _objects, partial(_objects, many=True))
_DRAW: dict[str, Callable[..., Tensor]] = dict(zip(CLASSES, _KINDS, strict=True))
