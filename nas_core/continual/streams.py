"""Tasks and streams of them: six of CTrL, permuted digits, disjoint splits (sections 5.3–5.4).

A `Stream` is a list of `TaskSpec`s and a source of images; a task is cut out when it is asked for.
Label i of a task is its i-th class, so the order of the classes *is* the labelling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nas_core.continual.families import RAINBOW, SPLITS, paint
from nas_core.continual.sources import Real, TaskSource, dataset_of
from nas_core.training import Augment, TensorData, derived_seeds, require


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

    def __post_init__(self) -> None:
        classes = list(self.classes)
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise ValueError(f"a task needs two or more classes, each once; got {classes}")
        if min(self.train, self.val) < len(classes):
            given = f"{self.train} / {self.val} examples for {len(classes)} classes"
            raise ValueError(f"{given}; both splits need at least one of each class")
        cap = self.test_per_class
        require(cap is None or cap >= 1, "test_per_class", cap, "at least 1")


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


@dataclass(eq=False, repr=False)
class Stream:
    """A sequence of tasks, the same for the same seed; iterable any number of times."""

    name: str  # for tables
    specs: Sequence[TaskSpec]
    source: TaskSource  # `Embedded(...)` or `Real(...)`
    _: KW_ONLY
    seed: int = 0
    augment: bool = True  # `standard_augmentation` in training
    device: torch.device | str = "cpu"  # of the tasks' tensors
    # Number that each task has in the stream it is taken from; decides which images are drawn.
    numbers: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not self.specs:
            raise ValueError("a stream needs at least one task")
        self.specs = tuple(self.specs)
        self.numbers = tuple(self.numbers or range(len(self.specs)))

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Stream({self.name}: {len(self)} tasks, seed {self.seed})"

    def _check(self, index: int) -> None:
        if index not in range(len(self)):
            raise IndexError(f"{self.name} has tasks 0…{len(self) - 1}, not {index}")

    def __getitem__(self, index: int) -> Task:
        """Task number `index`, counted from 0; always the same images."""
        self._check(index)
        spec, number = self.specs[index], self.numbers[index]
        parts = {split: self._cut(number, spec, split) for split in SPLITS}
        pixels = parts["train"][0].float() / 255
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp(min=1e-3)
        norm = (mean.tolist(), std.tolist())
        data = {s: TensorData(*xy, normalise=norm).to(self.device) for s, xy in parts.items()}
        if self.augment and spec.pixels is None:
            data["train"].augment = standard_augmentation(pixels.shape[-1])
        return Task(index, f"t{number + 1} {self.source.name(spec.dataset)}", spec, **data)

    def _cut(self, number: int, spec: TaskSpec, split: str) -> tuple[Tensor, Tensor]:
        """Images uint8 `[N, C, H, W]` and labels `[N]` of one split of a task."""
        source, where, way = self.source, self.source.name(spec.dataset), len(spec.classes)
        pool = source.pool(spec.dataset, split) if spec.pixels is None else None
        x, y = pool or source.plain_digits(split)
        names = source.classes(spec.dataset)
        if unknown := set(spec.classes) - set(names):
            raise ValueError(f"{where} has no classes {sorted(unknown)}")
        own = [(y == names.index(name)).nonzero().flatten() for name in spec.classes]
        total = {"train": spec.train, "val": spec.val}.get(split)
        whole = total == sum(map(len, own))  # the whole pool, which need not be balanced
        g = torch.Generator().manual_seed(derived_seeds(self.seed, number, SPLITS.index(split))[0])
        picked = []
        for label, (name, rows) in enumerate(zip(spec.classes, own, strict=True)):
            if not len(rows):
                raise ValueError(f"{where} has no {split} images of {name!r}")
            wanted = spec.test_per_class  # as many as there are, up to this cap
            if total is not None:
                wanted = len(rows) if whole else total // way + (label < total % way)
                if wanted > len(rows):
                    asked = f"task {number + 1} wants {wanted} {split} images of {name!r}"
                    raise ValueError(f"{asked}, but {where} has {len(rows)}; ask for fewer")
            picked.append(rows[torch.randperm(len(rows), generator=g)][:wanted])
        x = x[torch.cat(picked)]
        y = torch.cat([torch.full_like(rows, label) for label, rows in enumerate(picked)])
        if spec.background is not None:
            x = paint(x, spec.background)
        if spec.pixels is not None:
            g = torch.Generator().manual_seed(derived_seeds(self.seed, spec.pixels, 3)[0])
            x = x.flatten(1)[:, torch.randperm(x[0].numel(), generator=g)].view_as(x)
        return x, y

    def keep(self, *indices: int, name: str | None = None) -> Stream:
        """The stream of these tasks alone, with the same images."""
        for index in indices:
            self._check(index)
        specs, numbers = [self.specs[i] for i in indices], [self.numbers[i] for i in indices]
        return replace(self, name=name or self.name, specs=specs, numbers=numbers)

    def only(self, index: int) -> Stream:
        """A stream of that single task with the same images: for T(S), eq. 5.3."""
        return self.keep(index, name=f"{self.name}[{index + 1}] alone")

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
        return pd.DataFrame(rows, columns=["task", "dataset", "classes", "way", "train", "val"])


Sizes = dict[str, tuple[int, int]]
# Table 5.2. The numbers are totals: its caption says "per class", but DTD has 40 images a class.
THESIS_SIZES: Sizes = {"large": (4000, 2000), "small": (400, 200), "tiny": (50, 30)}
# The same proportions for the embedded families.
EMBEDDED_SIZES: Sizes = {"large": (1000, 300), "small": (100, 50), "tiny": (30, 20)}

_BETWEEN = [(name, "small") for name in ("digits", "textures", "clothes", "wild_digits")]
_STRUCTURE: dict[str, list[tuple[str, str]]] = {
    "minus": [("objects", "large"), *_BETWEEN, ("objects", "small")],
    "plus": [("objects", "small"), *_BETWEEN, ("objects", "large")],
    "in": [("rainbow_digits", "large"), ("objects", "small"), *_BETWEEN[1:],
           ("rainbow_digits", "tiny")],
    "out": [("objects", "large"), *_BETWEEN, ("objects", "small")],
    "pl": [*_BETWEEN, ("objects", "large")],
}  # fmt: skip
CTRL = (*_STRUCTURE, "long")
SYMBOLS = dict(zip(CTRL, ("S⁻", "S⁺", "S^in", "S^out", "S^pl", "S^long"), strict=True))
# S^long draws from these five, as the instance of appendix A does.
LONG_DATASETS = ("digits", "wild_digits", "clothes", "objects", "many_objects")


def ctrl_stream(
    name: str, source: TaskSource, *, seed: int = 0, sizes: Sizes | None = None,
    tasks: int = 100, test_per_class: int | None = None, **options: Any,
) -> Stream:  # fmt: skip
    """One of the six CTrL streams (table 5.2): "minus", "plus", "in", "out", "pl" or "long".

    `sizes` are training and validation totals of "large", "small" and "tiny" tasks: by default
    `THESIS_SIZES` (real images) or `EMBEDDED_SIZES`. `tasks` is the length of the long stream.
    `test_per_class` caps test images (default: all; S^long: 1000). `options` are the `Stream`'s.
    """
    require(name in CTRL, "stream", name, f"one of {', '.join(CTRL)}")
    if name == "long":
        cap = 1000 if test_per_class is None else test_per_class
        specs = long_specs(source, seed=seed, sizes=sizes, tasks=tasks, test_per_class=cap)
        return Stream("S^long", specs, source, seed=seed, **options)
    chosen = _sizes(THESIS_SIZES if isinstance(source, Real) else EMBEDDED_SIZES, sizes)
    rng = np.random.default_rng([seed, CTRL.index(name)])
    classes: dict[str, tuple[str, ...]] = {}
    for dataset, _ in _STRUCTURE[name]:  # ten classes each; DTD has more, so ten are drawn
        known = source.classes(dataset)
        picked = known if len(known) == 10 else tuple(rng.choice(known, 10, replace=False).tolist())
        classes.setdefault(dataset, picked)
    tabled = _STRUCTURE[name]
    specs = [TaskSpec(d, classes[d], *chosen[size], test_per_class) for d, size in tabled]
    if name == "in":
        colours = rng.choice(len(RAINBOW), 2, replace=False).tolist()
        specs[0] = replace(specs[0], background=colours[0])
        specs[-1] = replace(specs[-1], background=colours[1])
    if name == "out":
        specs[-1] = replace(specs[-1], classes=derange(specs[-1].classes, rng))
    check_relations(name, specs)
    return Stream(SYMBOLS[name], specs, source, seed=seed, **options)


def _sizes(default: Sizes, given: Sizes | None) -> Sizes:
    if unknown := set(given or {}) - set(default):
        raise ValueError(f"sizes {sorted(unknown)} are unknown; there are {', '.join(default)}")
    return {**default, **(given or {})}


def check_relations(name: str, specs: Sequence[TaskSpec]) -> None:
    """Refuse a stream whose first and last tasks are not related as its name says."""
    first, last, symbol = specs[0], specs[-1], SYMBOLS[name]
    distinct = [s.dataset.removeprefix("rainbow_") for s in (specs if name == "pl" else specs[:-1])]
    if len(set(distinct)) < len(distinct):
        raise ValueError(f"{symbol}: unrelated tasks share a data set: {distinct}")
    if name == "pl":
        return
    if first.dataset != last.dataset or set(first.classes) != set(last.classes):
        raise ValueError(f"{symbol}: the last task must have the classes of the first")
    if name == "out":
        check_deranged(first.classes, last.classes)
    elif first.classes != last.classes:
        raise ValueError(f"{symbol}: the last task must label its classes like the first")
    if (name == "in") != (first.background != last.background):
        raise ValueError(f"{symbol}: the inputs differ in S^in only, and must differ there")
    if (last.train > first.train) != (name == "plus") or last.train == first.train:
        raise ValueError(f"{symbol}: {first.train} training examples first, {last.train} last")


def derange(classes: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    """The classes in an order that leaves none at its old place."""
    if len(set(classes)) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"only two or more different classes can all move; got {list(classes)}")
    while True:
        order = rng.permutation(len(classes))
        if not (order == np.arange(len(classes))).any():
            return tuple(classes[i] for i in order)


def check_deranged(before: Sequence[str], after: Sequence[str]) -> None:
    """Raise when `after` is no permutation of `before` or leaves a class at its old label."""
    if sorted(before) != sorted(after):
        raise ValueError("the classes of the two tasks are not the same")
    if fixed := [a for a, b in zip(before, after, strict=True) if a == b]:
        raise ValueError(f"label permutation with fixed points: {fixed} keep their labels")


def small_fraction(task: int) -> float:
    """Probability that task 1…100 of S^long is small: ½, then ¾ from 34, then 1 from 67."""
    require(task >= 1, "task", task, "at least 1")
    return 0.5 if task <= 33 else 0.75 if task <= 66 else 1.0


def long_specs(
    source: TaskSource, *, seed: int = 0, sizes: Sizes | None = None, tasks: int = 100,
    test_per_class: int | None = 1000,
) -> list[TaskSpec]:  # fmt: skip
    """The schedule of S^long: random data set, five random classes, large or small.

    Training and validation totals are 5000 / 2500 (or all there is) and 25 / 15. A stream of fewer
    than 100 tasks runs through the same three phases, only faster.
    """
    require(tasks >= 1, "tasks", tasks, "at least 1")
    chosen = _sizes({"large": (5000, 2500), "small": (25, 15)}, sizes)
    rng = np.random.default_rng([seed, CTRL.index("long")])
    specs = []
    for t in range(tasks):
        dataset = LONG_DATASETS[rng.integers(len(LONG_DATASETS))]
        known = source.classes(dataset)
        classes = tuple(rng.choice(known, 5, replace=False).tolist())
        small = rng.random() < small_fraction(1 + t * 100 // tasks)
        totals = chosen["small" if small else "large"]
        if not small:  # "5000 or whatever is the maximum available", with balanced classes
            own = [known.index(c) for c in classes]
            counts = [source.pool(dataset, split)[1].bincount() for split in ("train", "val")]
            train, val = (5 * int(n[own].min()) for n in counts)
            totals = min(totals[0], train), min(totals[1], val)
        specs.append(TaskSpec(dataset, classes, *totals, test_per_class))
    return specs


def tabulated_stream(table: pd.DataFrame, source: TaskSource, **options: Any) -> Stream:
    """The stream that a table lists, e.g. appendix A's instance of S^long.

    Columns are dataset, classes (a tuple of names), train and val; `options` those of `Stream`.
    """

    def plain(name: str) -> str:  # MNIST's classes are "0 - zero", CIFAR-100's have underscores
        text = name.lower().replace("_", " ").strip()
        return text.split(" - ")[0] if text[:1].isdigit() else text

    specs = []
    for row in table.itertuples():
        dataset = dataset_of(str(row.dataset))
        known = {plain(c): c for c in source.classes(dataset)}
        if missing := [c for c in row.classes if plain(c) not in known]:
            raise ValueError(f"{source.name(dataset)} has no classes {missing}")
        classes = tuple(known[plain(c)] for c in row.classes)
        specs.append(TaskSpec(dataset, classes, int(row.train), int(row.val), 1000))
    return Stream("S^long (A.1)", specs, source, **options)


def permuted_digits(
    source: TaskSource, *, tasks: int = 10, train: int, val: int,
    test_per_class: int | None = None, **options: Any,
) -> Stream:  # fmt: skip
    """Permuted MNIST: every task shuffles the pixels of all digits in its own way."""
    every = TaskSpec("digits", source.classes("digits"), train, val, test_per_class)
    specs = [replace(every, pixels=t) for t in range(tasks)]
    return Stream("permuted digits", specs, source, augment=False, **options)


def split_classes(
    source: TaskSource, dataset: str = "many_objects", *, way: int = 10, train: int, val: int,
    seed: int = 0, test_per_class: int | None = None, **options: Any,
) -> Stream:  # fmt: skip
    """Split CIFAR-100: all classes in random order, `way` new ones per task."""
    known = source.classes(dataset)
    if way < 2 or len(known) % way:
        raise ValueError(f"{len(known)} classes cannot be split into tasks of {way}")
    order = np.random.default_rng([seed, 99]).permutation(len(known))
    groups = [tuple(known[i] for i in part) for part in order.reshape(-1, way)]
    specs = [TaskSpec(dataset, group, train, val, test_per_class) for group in groups]
    return Stream(f"split {source.name(dataset)}", specs, source, seed=seed, **options)
