"""Streams of tasks: the six of CTrL, permuted digits, disjoint splits (thesis sections 5.3–5.4).

A `Stream` is a list of `TaskSpec`s plus a catalogue of images; tasks are cut out when asked for.
Label i of a task is its i-th class, so the order of the classes *is* the labelling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nas_core.continual.families import paint
from nas_core.continual.sources import Catalogue, role_of
from nas_core.training import Compose, RandomCrop, RandomFlip, TensorData, derived_seeds

Sizes = dict[str, tuple[int, int]]
# Table 5.2. The numbers are totals: its caption says "per class", but DTD has 40 images a class.
THESIS_SIZES: Sizes = {"large": (4000, 2000), "small": (400, 200), "tiny": (50, 30)}
# The same proportions for the embedded families.
EMBEDDED_SIZES: Sizes = {"large": (1000, 300), "small": (100, 50), "tiny": (30, 20)}

_DISTRACTORS = ("digits", "textures", "clothes", "wild_digits")
_STRUCTURE: dict[str, list[tuple[str, str]]] = {
    "minus": [("objects", "large"), *((r, "small") for r in _DISTRACTORS), ("objects", "small")],
    "plus": [("objects", "small"), *((r, "small") for r in _DISTRACTORS), ("objects", "large")],
    "in": [
        ("rainbow_digits", "large"), ("objects", "small"), ("textures", "small"),
        ("clothes", "small"), ("wild_digits", "small"), ("rainbow_digits", "tiny"),
    ],
    "out": [("objects", "large"), *((r, "small") for r in _DISTRACTORS), ("objects", "small")],
    "pl": [*((r, "small") for r in _DISTRACTORS), ("objects", "large")],
}  # fmt: skip
CTRL = (*_STRUCTURE, "long")
SYMBOLS = {
    "minus": "S⁻",
    "plus": "S⁺",
    "in": "S^in",
    "out": "S^out",
    "pl": "S^pl",
    "long": "S^long",
}
# S^long draws from these five, as the instance of appendix A does.
LONG_ROLES = ("digits", "wild_digits", "clothes", "objects", "many_objects")


@dataclass(frozen=True)
class TaskSpec:
    """One row of a stream's table."""

    role: str
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


class Stream:
    """A sequence of tasks, the same for the same seed; iterable any number of times.

    Args:
        name: for tables.
        specs: the tasks.
        catalogue: `Embedded(...)` or `Real(...)`.
        augment: random crops (padding of an eighth of the side) and flips in training.
        device: where the tensors of the tasks live.
    """

    def __init__(
        self, name: str, specs: Sequence[TaskSpec], catalogue: Catalogue, *, seed: int = 0,
        augment: bool = True, device: torch.device | str = "cpu",
    ):  # fmt: skip
        if not specs:
            raise ValueError("a stream needs at least one task")
        self.name, self.specs, self.catalogue = name, tuple(specs), catalogue
        self.seed, self.augment, self.device = seed, augment, device

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Stream({self.name}: {len(self)} tasks, seed {self.seed})"

    def __getitem__(self, index: int) -> Task:
        """Task number `index`, counted from 0; always the same images."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has tasks 0…{len(self) - 1}, not {index}")
        spec = self.specs[index]
        test_size = None if spec.test_per_class is None else spec.test_per_class * len(spec.classes)
        sizes = {"train": spec.train, "val": spec.val, "test": test_size}
        parts = {s: self._cut(index, spec, s, n) for s, n in sizes.items()}
        pixels = parts["train"][0].float() / 255
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp(min=1e-3)
        normalise = (mean.tolist(), std.tolist())
        moved = None
        if self.augment and spec.pixels is None:
            moved = Compose([RandomCrop(max(1, pixels.shape[-1] // 8)), RandomFlip()])
        data = {
            split: TensorData(
                x, y, augment=moved if split == "train" else None, normalise=normalise
            ).to(self.device)
            for split, (x, y) in parts.items()
        }
        name = f"t{index + 1} {self.catalogue.name(spec.role)}"
        return Task(index, name, spec, data["train"], data["val"], data["test"])

    def only(self, index: int) -> Stream:
        """A stream of that single task with the same images: for T(S), eq. 5.3."""
        return _Single(self, index)

    def _cut(
        self, index: int, spec: TaskSpec, split: str, total: int | None
    ) -> tuple[Tensor, Tensor]:
        if spec.pixels is None:
            x, y = self.catalogue.pool(spec.role, split)
        else:
            x, y = self.catalogue.plain_digits(split)
        names = self.catalogue.classes(spec.role)
        if unknown := set(spec.classes) - set(names):
            raise ValueError(f"{self.catalogue.name(spec.role)} has no classes {sorted(unknown)}")
        key = {"train": 0, "val": 1, "test": 2}[split]
        g = torch.Generator().manual_seed(derived_seeds(self.seed, index, key)[0])
        way, rows, labels = len(spec.classes), [], []
        everything = total == sum(int((y == names.index(c)).sum()) for c in spec.classes)
        for label, name in enumerate(spec.classes):
            own = (y == names.index(name)).nonzero().flatten()
            own = own[torch.randperm(len(own), generator=g)]
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
                        f"{self.catalogue.name(spec.role)} has {len(own)}; ask for fewer"
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
        """Changes whenever a task, the catalogue or the seed changes."""
        text = repr((self.name, self.specs, self.catalogue, self.seed, self.augment))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def table(self) -> pd.DataFrame:
        """One row per task: data set, classes, sizes (tables 5.2 and A.1)."""
        return pd.DataFrame(
            {
                "task": i + 1,
                "dataset": self.catalogue.name(s.role),
                "classes": ", ".join(s.classes),
                "way": len(s.classes),
                "train": s.train,
                "val": s.val,
            }
            for i, s in enumerate(self.specs)
        )


class _Single(Stream):
    """One task of another stream, with its images unchanged."""

    def __init__(self, stream: Stream, index: int):
        super().__init__(
            f"{stream.name}[{index + 1}] alone", [stream.specs[index]], stream.catalogue,
            seed=stream.seed, augment=stream.augment, device=stream.device,
        )  # fmt: skip
        self._stream, self._index = stream, index

    def __getitem__(self, index: int) -> Task:
        if index != 0:
            raise IndexError(f"{self.name} has one task, not {index}")
        return replace(self._stream[self._index], id=0)


# ---------------------------------------------------------------- CTrL


def ctrl_stream(
    name: str, catalogue: Catalogue, *, seed: int = 0, sizes: Sizes | None = None,
    tasks: int = 100, test_per_class: int | None = None, augment: bool = True,
    device: torch.device | str = "cpu",
) -> Stream:  # fmt: skip
    """One of the six CTrL streams (table 5.2; S^long by the schedule of section 5.4).

    Args:
        name: "minus", "plus", "in", "out", "pl" or "long".
        sizes: training and validation totals for "large", "small" and "tiny" tasks; default
            `THESIS_SIZES` for real images and `EMBEDDED_SIZES` for the embedded families. For
            "long": "large" and "small", default 5000 / 2500 (or all there is) and 25 / 15.
        tasks: length of the long stream.
        test_per_class: cap on test images; default all (S^long: 1000, as in appendix A).
    """
    if name not in CTRL:
        raise ValueError(f"stream {name!r} is unknown; choose one of {', '.join(CTRL)}")
    options: dict[str, Any] = {"seed": seed, "augment": augment, "device": device}
    if name == "long":
        cap = 1000 if test_per_class is None else test_per_class
        specs = long_specs(catalogue, seed=seed, sizes=sizes, tasks=tasks, test_per_class=cap)
        return Stream("S^long", specs, catalogue, **options)
    default = THESIS_SIZES if catalogue.size == 32 and _is_real(catalogue) else EMBEDDED_SIZES
    chosen_sizes = {**default, **(sizes or {})}
    rng = np.random.default_rng([seed, CTRL.index(name)])
    classes: dict[str, tuple[str, ...]] = {}
    for role, _ in _STRUCTURE[name]:  # ten classes each; DTD has more, so ten are drawn
        known = catalogue.classes(role)
        picked = known if len(known) == 10 else tuple(rng.choice(known, 10, replace=False).tolist())
        classes.setdefault(role, picked)
    specs = [
        TaskSpec(
            role,
            classes[role],
            *chosen_sizes[size],
            test_per_class,
            0 if role == "rainbow_digits" else None,
        )
        for role, size in _STRUCTURE[name]
    ]
    if name == "in":
        colours = rng.choice(7, 2, replace=False).tolist()
        specs[0] = replace(specs[0], background=colours[0])
        specs[-1] = replace(specs[-1], background=colours[1])
    if name == "out":
        specs[-1] = replace(specs[-1], classes=derange(specs[-1].classes, rng))
    check_relations(name, specs)
    return Stream(SYMBOLS[name], specs, catalogue, **options)


def _is_real(catalogue: Catalogue) -> bool:
    return hasattr(catalogue, "root")


def check_relations(name: str, specs: Sequence[TaskSpec]) -> None:
    """Refuse a stream whose first and last tasks are not related as its name says.

    Raises:
        ValueError: for example when a label permutation leaves a class where it was.
    """
    first, last = specs[0], specs[-1]
    distinct = [s.role for s in (specs if name == "pl" else specs[:-1])]
    if len(set(distinct)) < len(distinct):
        raise ValueError(f"{SYMBOLS[name]}: unrelated tasks share a data set: {distinct}")
    if name == "pl":
        return
    if first.role != last.role or set(first.classes) != set(last.classes):
        raise ValueError(f"{SYMBOLS[name]}: the last task must have the classes of the first")
    if name == "out":
        check_deranged(first.classes, last.classes)
    elif first.classes != last.classes:
        raise ValueError(f"{SYMBOLS[name]}: the last task must label its classes like the first")
    if (name == "in") != (first.background != last.background):
        raise ValueError(f"{SYMBOLS[name]}: the inputs differ in S^in only, and must differ there")
    bigger = last.train > first.train
    if bigger != (name == "plus") or last.train == first.train:
        raise ValueError(
            f"{SYMBOLS[name]}: {first.train} training examples first, {last.train} last"
        )


def derange(classes: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    """The classes in an order that leaves none at its old place."""
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
    if task < 1:
        raise ValueError(f"task is {task}; tasks count from 1")
    return 0.5 if task <= 33 else 0.75 if task <= 66 else 1.0


def long_specs(
    catalogue: Catalogue, *, seed: int = 0, sizes: Sizes | None = None, tasks: int = 100,
    test_per_class: int | None = 1000,
) -> list[TaskSpec]:  # fmt: skip
    """The schedule of S^long: random data set, five random classes, large or small.

    A stream of fewer than 100 tasks runs through the same three phases, only faster.
    """
    if tasks < 1:
        raise ValueError(f"tasks is {tasks}; a stream has at least one")
    chosen = {"large": (5000, 2500), "small": (25, 15), **(sizes or {})}
    rng = np.random.default_rng([seed, CTRL.index("long")])
    specs = []
    for t in range(tasks):
        role = LONG_ROLES[rng.integers(len(LONG_ROLES))]
        classes = tuple(rng.choice(catalogue.classes(role), 5, replace=False).tolist())
        small = rng.random() < small_fraction(1 + t * 100 // tasks)
        train, val = chosen["small" if small else "large"]
        if not small:  # "5000 or whatever is the maximum available"
            limits = [_smallest_class(catalogue, role, classes, s) for s in ("train", "val")]
            train, val = min(train, 5 * limits[0]), min(val, 5 * limits[1])
        specs.append(TaskSpec(role, classes, train, val, test_per_class))
    return specs


def _smallest_class(catalogue: Catalogue, role: str, classes: Sequence[str], split: str) -> int:
    y = catalogue.pool(role, split)[1]
    names = catalogue.classes(role)
    return min(int((y == names.index(c)).sum()) for c in classes)


def tabulated_stream(
    table: pd.DataFrame, catalogue: Catalogue, *, seed: int = 0, augment: bool = True,
    device: torch.device | str = "cpu",
) -> Stream:  # fmt: skip
    """The stream that a table lists, e.g. appendix A's instance of S^long.

    Args:
        table: columns dataset, classes (a tuple of names), train, val; such as
            `nas_core.data.reference.load("s_long")`.
    """
    specs = []
    for row in table.itertuples():
        role = role_of(str(row.dataset))
        names = tuple(row.classes)
        known = {_plain(c): c for c in catalogue.classes(role)}
        if missing := [c for c in names if _plain(c) not in known]:
            raise ValueError(f"{catalogue.name(role)} has no classes {missing}")
        named = tuple(known[_plain(c)] for c in names)
        specs.append(TaskSpec(role, named, int(row.train), int(row.val), 1000))
    return Stream("S^long (A.1)", specs, catalogue, seed=seed, augment=augment, device=device)


def _plain(name: str) -> str:
    """MNIST's classes are called "0 - zero", CIFAR-100's have underscores."""
    text = name.lower().replace("_", " ").strip()
    return text.split(" - ")[0] if text[:1].isdigit() else text


# ---------------------------------------------------------------- standard streams


def permuted_digits(
    catalogue: Catalogue, *, tasks: int = 10, train: int, val: int, seed: int = 0,
    test_per_class: int | None = None, device: torch.device | str = "cpu",
) -> Stream:  # fmt: skip
    """Permuted MNIST: every task shuffles the pixels of all digits in its own way."""
    classes = catalogue.classes("digits")
    specs = [
        TaskSpec("digits", classes, train, val, test_per_class, pixels=t) for t in range(tasks)
    ]
    return Stream("permuted digits", specs, catalogue, seed=seed, augment=False, device=device)


def split_classes(
    catalogue: Catalogue, role: str = "many_objects", *, way: int = 10, train: int, val: int,
    seed: int = 0, test_per_class: int | None = None, augment: bool = True,
    device: torch.device | str = "cpu",
) -> Stream:  # fmt: skip
    """Split CIFAR-100: all classes in random order, `way` new ones per task."""
    known = catalogue.classes(role)
    if len(known) % way:
        raise ValueError(f"{len(known)} classes cannot be split into tasks of {way}")
    order = np.random.default_rng([seed, 99]).permutation(len(known))
    groups = [tuple(known[i] for i in part) for part in order.reshape(-1, way)]
    specs = [TaskSpec(role, group, train, val, test_per_class) for group in groups]
    check_disjoint(specs)
    name = f"split {catalogue.name(role)}"
    return Stream(name, specs, catalogue, seed=seed, augment=augment, device=device)


def check_disjoint(specs: Sequence[TaskSpec]) -> None:
    """Raise when two tasks of one data set share a class."""
    seen: dict[tuple[str, str], int] = {}
    for i, spec in enumerate(specs):
        for name in spec.classes:
            if (spec.role, name) in seen:
                raise ValueError(
                    f"class {name!r} is in task {seen[spec.role, name] + 1} and in task {i + 1}; "
                    "the tasks of a split share no class"
                )
            seen[spec.role, name] = i
