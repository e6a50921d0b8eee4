"""Residual cells with internal classifiers: a network that grows block by block and exits early.

Report sections 2, 3 and 5. A *block* is the cells between two classifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, max_pool2d

from nas_core.growing.pruning import draw, weights
from nas_core.spaces.layers import conv_bn
from nas_core.training import TensorData, eval_mode

POOLED = 4  # side of the maps that a classifier reads


@dataclass(frozen=True)
class Plan:
    """Shape of a network. The defaults are the report's dense super-network for CIFAR-10.

    The numbers of weights that the report prints per block leave two readings of its last block:
    `"A"`, the last block's cells have no projection and add the maps of the cell before; `"B"`,
    every cell projects and the last classifier reads the maps of all cells.
    """

    width: int = 16  # channels of every map
    cells: tuple[int, ...] = (3, 3, 2, 2)  # per block; (3, 3, 2, 1) is the report's in B
    dense: bool = True  # a cell reads the maps of the stem and of all cells before it
    reading: Literal["A", "B"] = "A"  # matters in dense networks only
    internal: bool = True  # a classifier per block; False: one head, which growing moves
    classes: int = 10
    in_channels: int = 3
    size: int = 32  # side of the images
    stem_pool: int = 1  # max-pooling after the stem: 2 halves the side of all maps

    def __post_init__(self) -> None:
        if self.reading not in ("A", "B"):
            raise ValueError(f'reading is {self.reading!r}; it must be "A" or "B"')
        if min(self.cells, default=0) < 1 or self.width < 1:
            raise ValueError(f"cells {self.cells}, width {self.width}; all must be at least 1")
        if self.size % self.stem_pool or self.side % POOLED or self.side < POOLED:
            raise ValueError(f"maps of side {self.side}; it must be a multiple of {POOLED}")
        if self.reads_all and not self.internal:
            raise ValueError("reading B changes the inputs of the last head; use internal=True")

    @property
    def reads_all(self) -> bool:
        """Whether the last classifier reads the maps of the stem and of all cells."""
        return self.dense and self.reading == "B"

    @property
    def side(self) -> int:
        """Side of the maps after the stem; no cell changes it."""
        return self.size // self.stem_pool

    @property
    def depths(self) -> tuple[float, ...]:
        """Where the classifiers are, as shares of all cells: .3, .6, .8, 1 by default."""
        return tuple(sum(self.cells[: b + 1]) / sum(self.cells) for b in range(len(self.cells)))


class Cell(nn.Module):
    """Two 3×3 convolutions and a shortcut: `[B, inputs, H, W]` → `[B, width, H, W]` (figure 20).

    With `project` the shortcut is a 1×1 convolution of everything the cell reads; otherwise it is
    the last `width` channels, which are the maps of the cell before.
    """

    def __init__(self, inputs: int, width: int, *, project: bool):
        super().__init__()
        self.first: Any = _conv(inputs, width)
        self.second: Any = _conv(width, width)
        self.shortcut: Any = _conv(inputs, width, 1) if project else None
        self.same: Any = slice(inputs - width, inputs)  # channels of x that the identity adds

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))  # [B, width, H, W]
        same = x[:, self.same] if self.shortcut is None else self.shortcut(x)
        return torch.relu(self.second(hidden) + same)


class Classifier(nn.Module):
    """Max- and average-pooling to 4×4, mixed by a learned scalar, then one linear layer.

    The internal classifier of Kaya et al. (2019): `a · max + (1 − a) · average`, `a` from U(0, 1).
    """

    def __init__(self, inputs: int, classes: int):
        super().__init__()
        self.mix = nn.Parameter(torch.rand(()))
        self.linear = nn.Linear(inputs * POOLED**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        window = x.shape[-1] // POOLED
        pooled = self.mix * max_pool2d(x, window) + (1 - self.mix) * avg_pool2d(x, window)
        return self.linear(pooled.flatten(1))  # [B, C, 4, 4] → [B, 16 C] → [B, K]


class GrowingNetwork(nn.Module):
    """A shallow-deep network that starts with one block and can grow the others.

    It has `blocks` blocks of its plan now (None: all). Maps are numbered: 0 is the stem's, i + 1
    those of cell i. `reads[i]` lists the maps that cell i concatenates, `head_reads[c]` those of
    classifier c. Weights come from the global generator of PyTorch.
    """

    def __init__(self, plan: Plan | None = None, blocks: int | None = None):
        super().__init__()
        self.plan = plan = plan or Plan()
        pool = nn.MaxPool2d(plan.stem_pool)
        self.stem: Any = nn.Sequential(*_conv(plan.in_channels, plan.width), nn.ReLU(), pool)
        self.cells: Any = nn.ModuleList()
        self.classifiers: Any = nn.ModuleList()
        self.reads: list[list[int]] = []
        self.head_reads: list[list[int]] = []
        self.blocks = 0
        for _ in range(len(plan.cells) if blocks is None else blocks):
            self.grow()

    def grow(self) -> list[nn.Parameter]:
        """Add the next block; old weights are not touched. Returns the new parameters.

        With internal classifiers the block brings its own. Otherwise the one head moves to the
        end of the new block and keeps its weights (the "same head" of Wang et al., 2017).
        """
        plan = self.plan
        if self.blocks == len(plan.cells):
            raise ValueError(f"all {self.blocks} blocks of the plan have been grown")
        last = self.blocks == len(plan.cells) - 1
        added = nn.ModuleList()
        for _ in range(plan.cells[self.blocks]):
            newest = len(self.cells)  # number of the map before this cell
            self.reads.append(list(range(newest + 1)) if plan.dense else [newest])
            # What reads one map only needs no projection: the shapes are right.
            project = len(self.reads[-1]) > 1 and not (last and plan.reading == "A")
            added.append(Cell(plan.width * len(self.reads[-1]), plan.width, project=project))
            self.cells.append(added[-1])
        end = len(self.cells)
        reads = list(range(end + 1)) if plan.reads_all and last else [end]
        if plan.internal or not self.classifiers:
            added.append(Classifier(plan.width * len(reads), plan.classes))
            self.classifiers.append(added[-1])
            self.head_reads.append(reads)
        else:
            self.head_reads[0] = reads
        self.blocks += 1
        added.to(self.stem[0].weight)  # device and dtype
        return list(added.parameters())

    def head_of(self, block: int) -> int | None:
        """Number of the classifier at the end of a block, if there is one."""
        head = block if self.plan.internal else block - self.blocks + 1
        return head if head >= 0 else None

    def block(self, number: int) -> list[str]:
        """Names of the modules of a block; the stem is in block 0."""
        names = [f"cells.{i}" for i in self._cells_of(number)]
        if (head := self.head_of(number)) is not None:
            names.append(f"classifiers.{head}")
        return ["stem", *names] if number == 0 else names

    def _cells_of(self, block: int) -> range:
        start = sum(self.plan.cells[:block])
        return range(start, start + self.plan.cells[block])

    def _run_block(self, number: int, maps: list[Tensor]) -> Tensor | None:
        """Append the maps of a block's cells to `maps`; its logits, if it has a classifier."""
        for i in self._cells_of(number):
            # A dead cell of an extracted network reads nothing; its map has no channels.
            read = [maps[m] for m in self.reads[i]] or [maps[0][:, :0]]
            maps.append(self.cells[i](torch.cat(read, 1)))
        if (head := self.head_of(number)) is None:
            return None
        return self.classifiers[head](torch.cat([maps[m] for m in self.head_reads[head]], 1))

    def exits(self, x: Tensor) -> Tensor:
        """Logits of every classifier, the shallow ones first: `[exits, B, K]`."""
        maps = [self.stem(x)]  # each [B, width, H, W]
        logits = [self._run_block(b, maps) for b in range(self.blocks)]
        return torch.stack([one for one in logits if one is not None])

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the deepest classifier, `[B, K]`."""
        return self.exits(x)[-1]


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    layers = conv_bn(inputs, outputs, kernel)
    draw(layers[0].get_parameter("weight"))
    return layers


def tau(epoch: int, epochs: int, depths: Sequence[float]) -> list[float]:
    """Weight of every internal classifier's loss in an epoch (counted from 0).

    It rises from about .01 to the classifier's depth: min(d, .01 + e·d/E), e = 1 … E.
    """
    return [min(d, 0.01 + (epoch + 1) * d / epochs) for d in depths]


def exits_loss(logits: Tensor, y: Tensor, weights: Sequence[float]) -> Tensor:
    """Cross-entropy of the deepest classifier plus Σ τ_i · that of internal classifier i.

    `logits` are `[exits, B, K]`, `weights` the τ of all classifiers but the deepest.
    """
    total = cross_entropy(logits[-1], y)
    for weight, one in zip(weights, logits[:-1], strict=True):
        total = total + weight * cross_entropy(one, y)
    return total


class Exited(NamedTuple):
    """What a batch was answered, and after how much work."""

    predictions: Tensor  # int64 [B]
    depth: Tensor  # int64 [B]: number of the classifier that answered, from 0
    macs: Tensor  # int64 [B]: multiply-adds of kept weights, classifiers on the way included


def confident(logits: Tensor, threshold: float) -> Tensor:
    """Whether the largest probability of `[..., K]` logits is above `threshold` (0…1)."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; a probability is in 0…1")
    return logits.softmax(-1).amax(-1) > threshold


def exit_depth(logits: Tensor, threshold: float) -> Tensor:
    """Number of the first confident classifier, else of the last one, of `[exits, B, K]`: `[B]`.

    With threshold 0 every example leaves at the first classifier, with 1 at the last.
    """
    sure = confident(logits, threshold)  # [exits, B]
    sure[-1] = True
    return sure.int().argmax(0)


@torch.no_grad()
def early_exit(net: GrowingNetwork, x: Tensor, threshold: float) -> Exited:
    """Answer a batch `[B, C, H, W]`; blocks run only for the examples that have not left yet.

    An example that stays unsure gets the answer of the last classifier (the code of Kaya et al.
    takes the most confident one). `net` must be in evaluation mode.
    """
    if net.training:
        raise ValueError("call net.eval() first: batch norm would mix the examples of the batch")
    rows = torch.arange(len(x), device=x.device)  # of the examples that are still inside
    answer, depth = torch.zeros_like(rows), torch.zeros_like(rows)
    maps, exits = [net.stem(x)], 0
    for b in range(net.blocks):
        logits = net._run_block(b, maps) if len(rows) else None  # [rows, K]
        if logits is not None:
            leaves = confident(logits, threshold) | (b == net.blocks - 1)
            answer[rows[leaves]] = logits.argmax(1)[leaves]
            depth[rows[leaves]] = exits
            rows, maps = rows[~leaves], [m[~leaves] for m in maps]
            exits += 1
    return Exited(answer, depth, torch.tensor(exit_macs(net), device=x.device)[depth])


def overthinking(logits: Tensor, y: Tensor) -> Tensor:
    """Examples that some internal classifier gets right and the last one wrong: bool `[B]`."""
    right = logits.argmax(-1) == y  # [exits, B]
    return right.any(0) & ~right[-1]


def exit_curve(
    logits: Tensor, y: Tensor, macs: Sequence[int], thresholds: Sequence[float]
) -> list[dict[str, float]]:
    """Accuracy against mean cost of early exit, a row per threshold (`macs` are `exit_macs`).

    `random` is the control: the accuracy of exits drawn in the same shares, whatever the example.
    """
    right = (logits.argmax(-1) == y).double()  # [exits, B]
    rows = []
    for q in thresholds:
        depth = exit_depth(logits, q)
        share = torch.bincount(depth, minlength=len(right)).double() / len(y)  # [exits]
        values = {
            "accuracy": right.gather(0, depth[None]).mean(), "random": share @ right.mean(1),
            "macs": share @ share.new_tensor(macs), "depth": depth.double().mean(),
        }  # fmt: skip
        rows.append({"threshold": q} | {name: float(value) for name, value in values.items()})
    return rows


@torch.no_grad()
def all_exits(net: Any, data: TensorData, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Logits `[exits, N, K]` and targets `[N]` of all of `data`, in order, in evaluation mode."""
    batches = list(data.plain().batches(batch_size, seed=0, shuffle=False))
    with eval_mode(net):
        logits = torch.cat([net.exits(x).float() for x, _ in batches], 1)
    return logits, torch.cat([y for _, y in batches])


def exit_macs(net: GrowingNetwork) -> list[int]:
    """Multiply-adds of kept (non-zero) weights until every exit, for one example.

    A weight of a convolution is used once per pixel of its output, one of a linear layer once.
    Classifiers on the way count: their confidence decides whether to go on.
    """
    spent, totals = 0, []
    for b in range(net.blocks):
        for name, w in weights(net, net.block(b)).items():
            pixels = net.plan.size**2 if name.startswith("stem") else net.plan.side**2
            spent += int(w.count_nonzero()) * (pixels if w.dim() == 4 else 1)
        if net.head_of(b) is not None:
            totals.append(spent)
    return totals
