"""The streams: six of CTrL, permuted digits, disjoint splits (thesis sections 5.3–5.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from nas_core.continual.families import RAINBOW
from nas_core.continual.sources import Real, TaskSource, dataset_of
from nas_core.continual.tasks import Stream, TaskSpec

Sizes = dict[str, tuple[int, int]]
# Table 5.2. The numbers are totals: its caption says "per class", but DTD has 40 images a class.
THESIS_SIZES: Sizes = {"large": (4000, 2000), "small": (400, 200), "tiny": (50, 30)}
# The same proportions for the embedded families.
EMBEDDED_SIZES: Sizes = {"large": (1000, 300), "small": (100, 50), "tiny": (30, 20)}

_DISTRACTORS = ("digits", "textures", "clothes", "wild_digits")
_STRUCTURE: dict[str, list[tuple[str, str]]] = {
    "minus": [("objects", "large"), *((d, "small") for d in _DISTRACTORS), ("objects", "small")],
    "plus": [("objects", "small"), *((d, "small") for d in _DISTRACTORS), ("objects", "large")],
    "in": [
        ("rainbow_digits", "large"), ("objects", "small"), ("textures", "small"),
        ("clothes", "small"), ("wild_digits", "small"), ("rainbow_digits", "tiny"),
    ],
    "out": [("objects", "large"), *((d, "small") for d in _DISTRACTORS), ("objects", "small")],
    "pl": [*((d, "small") for d in _DISTRACTORS), ("objects", "large")],
}  # fmt: skip
CTRL = (*_STRUCTURE, "long")
SYMBOLS = dict(zip(CTRL, ("S⁻", "S⁺", "S^in", "S^out", "S^pl", "S^long"), strict=True))
# S^long draws from these five, as the instance of appendix A does.
LONG_DATASETS = ("digits", "wild_digits", "clothes", "objects", "many_objects")


# ---------------------------------------------------------------- CTrL


def ctrl_stream(
    name: str, source: TaskSource, *, seed: int = 0, sizes: Sizes | None = None,
    tasks: int = 100, test_per_class: int | None = None, **options: Any,
) -> Stream:  # fmt: skip
    """One of the six CTrL streams (table 5.2; S^long by the schedule of section 5.4).

    Args:
        name: "minus", "plus", "in", "out", "pl" or "long".
        sizes: training and validation totals for "large", "small" and "tiny" tasks; default
            `THESIS_SIZES` for real images and `EMBEDDED_SIZES` for the embedded families. For
            "long": "large" and "small", default 5000 / 2500 (or all there is) and 25 / 15.
        tasks: length of the long stream.
        test_per_class: cap on test images; default all (S^long: 1000, as in appendix A).
        options: `augment` and `device` of the `Stream`.
    """
    if name not in CTRL:
        raise ValueError(f"stream {name!r} is unknown; choose one of {', '.join(CTRL)}")
    if name == "long":
        cap = 1000 if test_per_class is None else test_per_class
        specs = long_specs(source, seed=seed, sizes=sizes, tasks=tasks, test_per_class=cap)
        return Stream("S^long", specs, source, seed=seed, **options)
    default = THESIS_SIZES if isinstance(source, Real) else EMBEDDED_SIZES
    chosen_sizes = _sizes(default, sizes)
    rng = np.random.default_rng([seed, CTRL.index(name)])
    classes: dict[str, tuple[str, ...]] = {}
    for dataset, _ in _STRUCTURE[name]:  # ten classes each; DTD has more, so ten are drawn
        known = source.classes(dataset)
        picked = known if len(known) == 10 else tuple(rng.choice(known, 10, replace=False).tolist())
        classes.setdefault(dataset, picked)
    specs = [
        TaskSpec(dataset, classes[dataset], *chosen_sizes[size], test_per_class)
        for dataset, size in _STRUCTURE[name]
    ]
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
    """Refuse a stream whose first and last tasks are not related as its name says.

    Raises:
        ValueError: for example when a label permutation leaves a class where it was.
    """
    first, last = specs[0], specs[-1]
    distinct = [s.dataset.removeprefix("rainbow_") for s in (specs if name == "pl" else specs[:-1])]
    if len(set(distinct)) < len(distinct):
        raise ValueError(f"{SYMBOLS[name]}: unrelated tasks share a data set: {distinct}")
    if name == "pl":
        return
    if first.dataset != last.dataset or set(first.classes) != set(last.classes):
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
    if task < 1:
        raise ValueError(f"task is {task}; tasks count from 1")
    return 0.5 if task <= 33 else 0.75 if task <= 66 else 1.0


def long_specs(
    source: TaskSource, *, seed: int = 0, sizes: Sizes | None = None, tasks: int = 100,
    test_per_class: int | None = 1000,
) -> list[TaskSpec]:  # fmt: skip
    """The schedule of S^long: random data set, five random classes, large or small.

    A stream of fewer than 100 tasks runs through the same three phases, only faster.
    """
    if tasks < 1:
        raise ValueError(f"tasks is {tasks}; a stream has at least one")
    chosen = _sizes({"large": (5000, 2500), "small": (25, 15)}, sizes)
    rng = np.random.default_rng([seed, CTRL.index("long")])
    specs = []
    for t in range(tasks):
        dataset = LONG_DATASETS[rng.integers(len(LONG_DATASETS))]
        classes = tuple(rng.choice(source.classes(dataset), 5, replace=False).tolist())
        small = rng.random() < small_fraction(1 + t * 100 // tasks)
        train, val = chosen["small" if small else "large"]
        if not small:  # "5000 or whatever is the maximum available"
            limits = [_smallest_class(source, dataset, classes, s) for s in ("train", "val")]
            train, val = min(train, 5 * limits[0]), min(val, 5 * limits[1])
        specs.append(TaskSpec(dataset, classes, train, val, test_per_class))
    return specs


def _smallest_class(source: TaskSource, dataset: str, classes: Sequence[str], split: str) -> int:
    y = source.pool(dataset, split)[1]
    names = source.classes(dataset)
    return min(int((y == names.index(c)).sum()) for c in classes)


def tabulated_stream(table: pd.DataFrame, source: TaskSource, **options: Any) -> Stream:
    """The stream that a table lists, e.g. appendix A's instance of S^long.

    Args:
        table: columns dataset, classes (a tuple of names), train, val; such as
            `nas_core.data.reference.load("s_long")`.
        options: `seed`, `augment` and `device` of the `Stream`.
    """
    specs = []
    for row in table.itertuples():
        dataset = dataset_of(str(row.dataset))
        names = tuple(row.classes)
        known = {_plain(c): c for c in source.classes(dataset)}
        if missing := [c for c in names if _plain(c) not in known]:
            raise ValueError(f"{source.name(dataset)} has no classes {missing}")
        named = tuple(known[_plain(c)] for c in names)
        specs.append(TaskSpec(dataset, named, int(row.train), int(row.val), 1000))
    return Stream("S^long (A.1)", specs, source, **options)


def _plain(name: str) -> str:
    """MNIST's classes are called "0 - zero", CIFAR-100's have underscores."""
    text = name.lower().replace("_", " ").strip()
    return text.split(" - ")[0] if text[:1].isdigit() else text


# ---------------------------------------------------------------- standard streams


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
    check_disjoint(specs)
    return Stream(f"split {source.name(dataset)}", specs, source, seed=seed, **options)


def check_disjoint(specs: Sequence[TaskSpec]) -> None:
    """Raise when two tasks of one data set share a class."""
    seen: dict[tuple[str, str], int] = {}
    for i, spec in enumerate(specs):
        for name in spec.classes:
            if (spec.dataset, name) in seen:
                raise ValueError(
                    f"class {name!r} is in tasks {seen[spec.dataset, name] + 1} and {i + 1}; "
                    "the tasks of a split share no class"
                )
            seen[spec.dataset, name] = i
