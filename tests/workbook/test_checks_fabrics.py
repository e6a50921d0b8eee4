"""Exercises of chapters 04 and 05: right answers pass, typical mistakes are told apart."""

import networkx as nx
import pytest
import torch

from nas_core.workbook import checks


def edge_macs(kind, side, channels):
    return 9 * channels**2 * {"same": side, "down": side // 2, "up": 2 * side}[kind] ** 2


def share_by_scale(targets, kept):
    found = {}
    for name, value in zip(targets, kept, strict=True):
        found.setdefault(int(name.split(".")[1]), []).append(float(value))
    return {scale: sum(values) / len(values) for scale, values in found.items()}


def longest_chain(operations):
    finished = {}
    for op in nx.topological_sort(operations):
        finished[op] = 1 + max((finished[p] for p in operations.predecessors(op)), default=0)
    return max(finished.values(), default=0)


def slower(mask, macs, machine):
    work = mask.double() * macs
    return torch.stack([work @ (machine == m).double() for m in (0, 1)], dim=1).amax(1)


def by_column(targets, kept):
    return share_by_scale([".".join(reversed(t.split("."))) for t in targets], kept)


def sums(targets, kept):
    found = {}
    for name, value in zip(targets, kept, strict=True):
        scale = int(name.split(".")[1])
        found[scale] = found.get(scale, 0) + float(value)
    return found


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (checks.ex_4_1, edge_macs),
        (checks.ex_4_2, share_by_scale),
        (checks.ex_5_1, longest_chain),
        (checks.ex_5_2, slower),
    ],
)
def test_right_answers_pass(check, answer, capsys):
    assert check(answer)
    assert capsys.readouterr().out.startswith("✓")


@pytest.mark.parametrize(
    ("check", "answer", "hint"),
    [
        (checks.ex_4_1, lambda kind, side, f: 9 * f**2 * side**2, "count what is written"),
        (checks.ex_4_1, lambda *a: edge_macs(*a) // a[2], "F², not F"),
        (checks.ex_4_1, lambda *a: 2 * edge_macs(*a), "not as two operations"),
        (checks.ex_4_2, sums, "divide by the number"),
        (checks.ex_4_2, by_column, "grouped by column"),
        (checks.ex_4_2, lambda t, k: {}, "expected the keys"),
        (checks.ex_5_1, lambda g: max(longest_chain(g) - 1, 0), "count the operations"),
        (checks.ex_5_1, len, "only one chain"),
        (
            checks.ex_5_1,
            lambda g: nx.dag_longest_path_length(g, default_weight=1) + 1 if g else 0,
            "networkx's own dag_longest_path_length",
        ),
        (checks.ex_5_1, lambda g: len(nx.dag_longest_path(g)), "networkx's own dag_longest_path:"),
        (checks.ex_5_1, lambda g: max(map(len, nx.weakly_connected_components(g))), "for"),
        (checks.ex_5_2, lambda m, c, w: m.double() @ c.double(), "run at the same time"),
        (
            checks.ex_5_2,
            lambda m, c, w: m.double() @ c.double() - slower(m, c, w),
            "the other one decides",
        ),
        (
            checks.ex_5_2,
            lambda m, c, w: torch.stack([(m * c * (w == k)).sum(1) for k in (0, 1)], 1),
            "keep the larger",
        ),
    ],
)
def test_mistakes_fail_with_words(check, answer, hint, capsys):
    assert not check(answer)
    out = capsys.readouterr().out
    assert out.startswith("✗") and hint in out
