"""Tasks cut out of a source of images, and streams of them.

A `Stream` is a list of `TaskSpec`s plus a source of images; tasks are cut out when asked for.
Label i of a task is its i-th class, so the order of the classes *is* the labelling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from nas_core.continual.families import paint
from nas_core.continual.sources import TaskSource
from nas_core.training import Augment, TensorData, derived_seeds


@dataclass(frozen=True)
class TaskSpec:
    """One row of a stream's table."""

    dataset: str  # one of `sources.REAL`
    classes: tuple[str, ...]  # class i has label i
    train: int  # total number of examples, as many of each class as possible
    val: int
    test_per_class: int | None = None  # None: all there are
    background: int | None = None  # rainbow digits: number of the colour
    pixels: int | None = None  # seed of a permutation of the pixels

    def __post_init__(self):
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise ValueError(
                f"a task needs two or more classes, each once; got {list(self.classes)}"
            )
        if min(self.train, self.val) < len(self.classes):
            raise ValueError(
                f"{self.train} / {self.val} examples for {len(self.classes)} classes: "
                "training and validation need at least one of each class"
            )
        if self.test_per_class is not None and self.test_per_class < 1:
            raise ValueError(f"test_per_class is {self.test_per_class}; it must be at least 1")


@dataclass(frozen=True)
class Task:
    """What a learner gets: three splits, normalised by the training split's own statistics."""

    id: int
    name: str
    spec: TaskSpec
    train: TensorData
    val: TensorData
    test: TensorData

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def way(self) -> int:
        return len(self.spec.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.x.shape[1:])


def standard_augmentation(side: int) -> Augment:
    """Random crops (padding of an eighth of the side) and flips."""
    return Augment(max(1, side // 8), flip=True)


class Stream:
    """A sequence of tasks, the same for the same seed; iterable any number of times.

    Args:
        name: for tables.
        specs: the tasks.
        source: `Embedded(...)` or `Real(...)`.
        augment: `standard_augmentation` in training.
        device: where the tensors of the tasks live.
        numbers: which task of the original stream each one is, for the draw of its images;
            default 0, 1, 2, …
    """

    def __init__(
        self, name: str, specs: Sequence[TaskSpec], source: TaskSource, *, seed: int = 0,
        augment: bool = True, device: torch.device | str = "cpu",
        numbers: Sequence[int] | None = None,
    ):  # fmt: skip
        if not specs:
            raise ValueError("a stream needs at least one task")
        self.numbers = tuple(range(len(specs)) if numbers is None else numbers)
        self.name, self.specs, self.source = name, tuple(specs), source
        self.seed, self.augment, self.device = seed, augment, device

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Stream({self.name}: {len(self)} tasks, seed {self.seed})"

    def __getitem__(self, index: int) -> Task:
        """Task number `index`, counted from 0; always the same images."""
        spec = self.specs[self._known(index)]
        test_size = None if spec.test_per_class is None else spec.test_per_class * len(spec.classes)
        sizes = {"train": spec.train, "val": spec.val, "test": test_size}
        number = self.numbers[index]
        parts = {s: self._cut(number, spec, s, n) for s, n in sizes.items()}
        pixels = parts["train"][0].float() / 255
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp(min=1e-3)
        normalise = (mean.tolist(), std.tolist())
        moved = None
        if self.augment and spec.pixels is None:
            moved = standard_augmentation(pixels.shape[-1])
        train, val, test = (
            TensorData(x, y, moved if split == "train" else None, normalise).to(self.device)
            for split, (x, y) in parts.items()
        )
        return Task(
            index, f"t{number + 1} {self.source.name(spec.dataset)}", spec, train, val, test
        )

    def _known(self, index: int) -> int:
        if index not in range(len(self)):
            raise IndexError(f"{self.name} has tasks 0…{len(self) - 1}, not {index}")
        return index

    def keep(self, *indices: int, name: str | None = None) -> Stream:
        """The stream of these tasks alone, with the same images."""
        specs = [self.specs[self._known(i)] for i in indices]
        return Stream(
            name or self.name, specs, self.source, seed=self.seed, augment=self.augment,
            device=self.device, numbers=[self.numbers[i] for i in indices],
        )  # fmt: skip

    def only(self, index: int) -> Stream:
        """A stream of that single task with the same images: for T(S), eq. 5.3."""
        return self.keep(index, name=f"{self.name}[{index + 1}] alone")

    def _cut(
        self, index: int, spec: TaskSpec, split: str, total: int | None
    ) -> tuple[Tensor, Tensor]:
        if spec.pixels is None:
            x, y = self.source.pool(spec.dataset, split)
        else:
            x, y = self.source.plain_digits(split)
        names = self.source.classes(spec.dataset)
        if unknown := set(spec.classes) - set(names):
            raise ValueError(f"{self.source.name(spec.dataset)} has no classes {sorted(unknown)}")
        key = {"train": 0, "val": 1, "test": 2}[split]
        g = torch.Generator().manual_seed(derived_seeds(self.seed, index, key)[0])
        way, rows, labels = len(spec.classes), [], []
        everything = total == sum(int((y == names.index(c)).sum()) for c in spec.classes)
        for label, name in enumerate(spec.classes):
            own = (y == names.index(name)).nonzero().flatten()
            own = own[torch.randperm(len(own), generator=g)]
            if not len(own):
                raise ValueError(
                    f"{self.source.name(spec.dataset)} has no {split} images of {name!r}"
                )
            if split == "test":  # as many as there are, up to the cap
                wanted = len(own) if total is None else min(len(own), total // way)
            elif everything:  # the whole pool, which need not be balanced
                wanted = len(own)
            else:
                assert total is not None
                wanted = total // way + (label < total % way)
                if wanted > len(own):
                    raise ValueError(
                        f"task {index + 1} wants {wanted} {split} images of {name!r}, but "
                        f"{self.source.name(spec.dataset)} has {len(own)}; ask for fewer"
                    )
            rows.append(own[:wanted])
            labels.append(torch.full((wanted,), label))
        picked = torch.cat(rows)
        x, y = x[picked], torch.cat(labels)
        if spec.background is not None:
            x = paint(x, spec.background)
        if spec.pixels is not None:
            g = torch.Generator().manual_seed(derived_seeds(self.seed, spec.pixels, 3)[0])
            x = x.flatten(1)[:, torch.randperm(x[0].numel(), generator=g)].view_as(x)
        return x, y

    @property
    def fingerprint(self) -> str:
        """Changes whenever a task, the source or the seed changes."""
        parts = (self.name, self.specs, self.source, self.seed, self.augment, self.numbers)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def table(self) -> pd.DataFrame:
        """One row per task: data set, classes, sizes (tables 5.2 and A.1)."""
        rows = [
            (i, self.source.name(s.dataset), ", ".join(s.classes), len(s.classes), s.train, s.val)
            for i, s in enumerate(self.specs, 1)
        ]
        columns = ["task", "dataset", "classes", "way", "train", "val"]
        return pd.DataFrame(rows, columns=columns)
