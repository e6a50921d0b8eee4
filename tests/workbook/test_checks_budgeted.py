"""Exercises of chapter 03: solutions pass, stubs and typical mistakes fail and say why."""

import pytest

from nas_core.workbook import checks


def block_macs(inputs, outputs, size, stride):
    pixels = (size // stride) ** 2
    return 9 * pixels * (inputs * outputs + outputs * outputs)


def objective(loss, cost, budget, lam, full_cost):
    return loss + lam * ((cost - budget) / full_cost).clamp(min=0)


def select(runs, budget):
    affordable = runs[runs.cost <= budget]
    return affordable.loc[affordable.val_accuracy.idxmax()].test_accuracy


def front_of(points):
    kept, best = [], float("-inf")
    for cost, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if accuracy > best:
            kept.append((cost, accuracy))
            best = accuracy
    return kept


@pytest.mark.parametrize(
    ("check", "solution"),
    [("ex_3_1", block_macs), ("ex_3_2", objective), ("ex_3_3", select), ("ex_3_4", front_of)],
)
def test_solutions_pass_and_stubs_fail(check, solution, capsys):
    exercise = getattr(checks, check)
    assert exercise(solution)
    assert not exercise(lambda *arguments: ...)
    assert not exercise(None)
    assert "✗" in capsys.readouterr().out


MISTAKES = [
    ("ex_3_1", lambda i, o, s, k: 2 * block_macs(i, o, s, k), "not two"),
    ("ex_3_1", lambda i, o, s, k: 9 * s * s * (i * o + o * o), "output"),
    ("ex_3_1", lambda i, o, s, k: 9 * (s * s * i * o + (s // k) ** 2 * o * o), "stride"),
    ("ex_3_1", lambda i, o, s, k: 9 * ((s // k) ** 2 * i * o + s * s * o * o), "smaller"),
    (
        "ex_3_1",
        lambda i, o, s, k: 9 * (s * s * i * o + (s // k) ** 2 * o * o),
        "first convolution",
    ),
    ("ex_3_1", lambda i, o, s, k: block_macs(i, o, s, k) // 9, "kernel"),
    ("ex_3_2", lambda d, c, b, lam, f: d + lam * (c - b) / f, "bonus"),
    ("ex_3_2", lambda d, c, b, lam, f: d + lam * (c - b).clamp(min=0), "full_cost"),
    ("ex_3_3", lambda r, b: r[r.cost <= b].test_accuracy.max(), "best *test*"),
    ("ex_3_3", lambda r, b: r[r.cost <= b].val_accuracy.max(), "report the test"),
    ("ex_3_3", lambda r, b: r.loc[r.val_accuracy.idxmax()].test_accuracy, "more than the budget"),
    ("ex_3_4", lambda points: front_of(points)[::-1], "sort them"),
    ("ex_3_4", lambda points: sorted(points), "beaten"),
]


@pytest.mark.parametrize(("check", "mistake", "words"), MISTAKES)
def test_typical_mistakes_are_explained(check, mistake, words, capsys):
    assert not getattr(checks, check)(mistake)
    assert words in capsys.readouterr().out
