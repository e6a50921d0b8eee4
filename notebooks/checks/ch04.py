"""Checks of chapter 04."""

from __future__ import annotations

from nas_core.workbook.checks import Problem, compare, exercise


def _edge_macs(kind: str, source_side: int, channels: int) -> int:
    side = {"same": source_side, "down": source_side // 2, "up": source_side * 2}[kind]
    return 9 * channels**2 * side**2


def _at_the_input(got: object, want: int, kind: str, side: int, channels: int) -> bool:
    return got == 9 * channels**2 * side**2


def _linear_channels(got: object, want: int, kind: str, side: int, channels: int) -> bool:
    return got == want / channels


def _flops(got: object, want: int, *_: object) -> bool:
    return got == 2 * want


@exercise("4.1", "multiply-adds of an edge")
def ex_4_1(fn: object) -> Problem:
    """`fn(kind, source_side, channels) -> int`: a 3×3 convolution between neighbouring maps."""
    hints = [
        (_at_the_input, "you counted at the resolution of the input; count what is written"),
        (_linear_channels, "every output channel reads every input channel: F², not F"),
        (_flops, "a multiply-add is counted once, not as two operations"),
    ]
    cases = {
        "a 'same' edge at 16×16": ["same", 16, 8],
        "a 'down' edge from 16×16": ["down", 16, 8],
        "an 'up' edge from 4×4": ["up", 4, 32],
    }
    return compare(fn, _edge_macs, cases, hints=hints)


def _share_by_scale(targets: list[str], kept: list[float]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for name, value in zip(targets, kept, strict=True):
        found.setdefault(int(name.split(".")[1]), []).append(float(value))
    return {scale: sum(values) / len(values) for scale, values in found.items()}


def _counts(got: dict, want: dict, targets: list[str], kept: list[float]) -> bool:
    number = {s: sum(int(t.split(".")[1]) == s for t in targets) for s in want}
    return all(abs(got[s] - want[s] * number[s]) < 1e-9 for s in want)


def _by_column(got: dict, want: dict, targets: list[str], kept: list[float]) -> bool:
    return got == _share_by_scale([".".join(t.split(".")[::-1]) for t in targets], kept)


@exercise("4.2", "shares of kept edges by scale")
def ex_4_2(fn: object) -> Problem:
    """`fn(targets, kept) -> {scale: mean of kept}`."""
    hints = [
        (_counts, "these are sums; divide by the number of edges into the scale"),
        (_by_column, "you grouped by column; the scale is the number after the dot"),
    ]
    cases = {
        "four edges": [["0.0", "1.0", "1.1", "2.1"], [True, False, True, True]],
        "probabilities": [["0.2", "3.2", "3.0"], [0.25, 0.5, 1.0]],
        "ten columns": [["10.1", "11.1", "1.10"], [True, False, False]],
    }
    return compare(fn, _share_by_scale, cases, hints=hints)
