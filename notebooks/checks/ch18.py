"""Checks of chapter 18, pruning as search."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_core.growing import pruning
from nas_core.workbook.checks import Problem, exercise


def _problem(got, want: dict[str, Tensor], kept: int) -> Problem:
    """What is wrong with a dictionary of masks, or None."""
    if not isinstance(got, dict) or set(got) != set(want):
        return f"return a dictionary with the names {', '.join(want)}"
    for name, mask in got.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            return f"the mask of {name!r} must be a bool tensor"
        if mask.shape != want[name].shape:
            return f"the mask of {name!r} has shape {list(mask.shape)}, not that of its weight"
    if (count := pruning.count(got)) != kept:
        return f"{count} weights are kept instead of {kept}"
    if different := sum(int((got[k] != want[k]).sum()) for k in want):
        return f"{different} of the mask's entries differ"
    return None


def _same_masks(got, want: dict[str, Tensor]) -> bool:
    return _problem(got, want, pruning.count(want)) is None


@exercise("18.1", "a SNIP mask")
def ex_18_1(answer) -> Problem:
    """`fn(weights {name: [..]}, loss() -> scalar, keep) -> {name: bool [..]}`."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    x, y = torch.randn(20, 6), torch.randint(4, (20,))
    weights = pruning.weights(net)
    total = sum(w.numel() for w in weights.values())

    def loss() -> Tensor:
        return cross_entropy(net(x), y)

    scores = pruning.snip(weights, loss, module=net)
    gradients = torch.autograd.grad(loss(), list(weights.values()))
    others = {
        "the score is |w · ∂L/∂w|; this is the gradient alone": {
            k: g.abs() for k, g in zip(weights, gradients, strict=True)
        },
        "the score is |w · ∂L/∂w|; this is the weight alone": pruning.magnitude(weights),
        "these are the weights with the smallest scores": {k: -s for k, s in scores.items()},
        "take the absolute value of w · ∂L/∂w": {
            k: (w * g).detach()
            for (k, w), g in zip(weights.items(), gradients, strict=True)
        },
    }  # fmt: skip
    before = {k: w.detach().clone() for k, w in weights.items()}
    for keep in (0.35, 0.1):
        kept = int(keep * total)
        want = pruning.keep_best(scores, kept)
        got = answer(weights, loss, keep)
        if any(not torch.equal(w, before[k]) for k, w in weights.items()):
            return "it changes the weights; return masks and leave the weights alone"
        problem = _problem(got, want, kept)
        if problem is None:
            continue
        layers = {k: int(keep * s.numel()) for k, s in scores.items()}
        if _same_masks(got, pruning.keep_best(scores, layers)):
            return f"for keep = {keep} {problem}; all layers compete: join their scores"
        for words, other in others.items():
            if _same_masks(got, pruning.keep_best(other, kept)):
                return f"for keep = {keep} {problem}; {words}"
        return f"for keep = {keep} {problem}"
    return None


def _training(weights: dict[str, Tensor], seen: list) -> Callable[[dict[str, Tensor]], None]:
    """A stand-in for training: weights move, survivors only, the same way in every round."""
    goals = {
        k: torch.randn(w.shape, generator=torch.Generator().manual_seed(7 + i))
        for i, (k, w) in enumerate(weights.items())
    }

    def train(masks: dict[str, Tensor]) -> None:
        seen.append(({k: m.clone() for k, m in masks.items()}, _copies(weights)))
        turn = torch.Generator().manual_seed(len(seen))
        with torch.no_grad():
            for k, w in weights.items():
                w.add_(goals[k] + 0.5 * torch.randn(w.shape, generator=turn)).mul_(masks[k])

    return train


def _copies(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: w.detach().clone() for k, w in weights.items()}


def _expected(start, keep: float, rounds: int, mistake: str = "") -> dict[str, Tensor]:
    weights = _copies(start)
    train = _training(weights, [])
    total = sum(w.numel() for w in weights.values())
    masks = pruning.keep_all(weights)
    for r in range(1, rounds + 1):
        train(masks)
        left = int(keep ** (r / rounds) * total)
        if mistake == "smallest":
            score = {k: -w.abs() for k, w in weights.items()}
        else:
            score = pruning.magnitude(weights)
        masks = pruning.keep_best(score, left, within=masks)
        if mistake != "no rewinding":
            for k, w in weights.items():
                w.copy_(start[k] * masks[k])
    return masks


@exercise("18.2", "a lottery ticket")
def ex_18_2(answer) -> Problem:
    """`fn(weights {name: [..]}, train(masks), keep, rounds) -> {name: bool [..]}`, in place."""
    g = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(5, 6, generator=g), "b": torch.randn(10, generator=g)}
    for keep, rounds in ((0.3, 1), (0.2, 3)):
        weights, seen = _copies(start), []
        want = _expected(start, keep, rounds)
        got = answer(weights, _training(weights, seen), keep, rounds)
        label = f"for {rounds} round{'s' * (rounds > 1)}"
        if len(seen) != rounds:
            return f"{label} `train` is called {len(seen)} times; once in each round"
        total = sum(w.numel() for w in start.values())
        for r, (masks, found) in enumerate(seen):
            if any(not torch.equal(found[k], start[k] * masks[k]) for k in start):
                return (
                    f"{label} training number {r + 1} does not begin at the start times the "
                    "mask; rewind after every round"
                )
            if r and (left := pruning.count(masks)) != (goal := int(keep ** (r / rounds) * total)):
                return (
                    f"{label} training number {r + 1} has {left} weights instead of {goal}; the "
                    "share keep^(r/rounds) is of all weights"
                )
            if r and any((masks[k] & ~seen[r - 1][0][k]).any() for k in start):
                return f"{label} a pruned weight came back; survivors compete among themselves"
        if problem := _problem(got, want, int(keep * total)):
            if _same_masks(got, _expected(start, keep, rounds, "smallest")):
                problem += "; keep the largest weights, not the smallest"
            return f"{label} {problem}"
        if any(not torch.equal(weights[k], start[k] * want[k]) for k in start):
            return f"{label} the weights must end at their start times the mask; rewind once more"
    return None
