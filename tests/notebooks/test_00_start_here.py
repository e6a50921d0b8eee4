"""Chapter 00: its bands have controls that fail, its exercise is checked both ways."""

import pytest
import torch
from torch import nn

from nas_core import costs, search, supernet
from nas_core.workbook import Book, checks, notebooks
from tests.notebooks.book import bands, exercises, separates

CHAPTER = Book.load().find(0)
BANDS = bands(CHAPTER.path)


@pytest.fixture(scope="module")
def bridge():
    """The network of the chapter."""
    source = next(
        c.source
        for c in notebooks.code_cells(notebooks.read(CHAPTER.path))
        if "bridge = supernet.SuperNetwork" in c.source
    )
    scope = {"supernet": supernet, "nn": nn}
    exec(source, scope)
    return scope["bridge"]


def test_every_band_is_controlled_here():
    assert set(BANDS) == {
        "items that are needed and broken",
        "architectures of the bridge",
        "sampled mean cost / exact mean cost",
    }


def test_one_broken_item_fails():
    assert separates(BANDS["items that are needed and broken"], 1)


def test_counting_without_pruning_fails(bridge):
    different = torch.unique(search.all_masks(bridge.graph), dim=0)
    assert separates(BANDS["architectures of the bridge"], int(different.any(dim=1).sum()))


def test_pricing_dead_edges_fails(bridge):
    masks = search.all_masks(bridge.graph)
    cost = costs.computation(bridge)
    ratio = cost(masks).mean() / cost(bridge.graph.reachable(masks)).mean()
    assert separates(BANDS["sampled mean cost / exact mean cost"], float(ratio))


def answer_of(kind):
    return exercises("00", kind)["cost_of"]


def test_the_solution_passes(capsys):
    assert checks.ex_0_1(answer_of("solution"))
    assert checks.ex_0_1(lambda mask, macs: torch.where(mask, macs, 0).sum(1))
    assert "✗" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (answer_of("stub"), "not written yet"),
        (lambda mask, macs: (mask * macs).sum(), "sum over the last axis only"),
        (lambda mask, macs: mask.sum(1), "weigh each by its multiply-adds"),
        (lambda mask, macs: mask * macs, "expected shape [1], got [1, 4]"),
        (lambda mask, macs: mask @ macs, "raises RuntimeError"),
    ],
)
def test_mistakes_are_explained(mistake, told, capsys):
    assert not checks.ex_0_1(mistake)
    assert told in capsys.readouterr().out


def test_summing_the_wrong_axis_is_recognised():
    """With as many architectures as edges the shape does not give it away."""
    case = "as many architectures as edges"
    problem = checks.ex_0_1.problem(
        lambda mask, macs: (mask * macs).sum(0 if len(mask) == len(macs) else 1).float()
    )
    assert case in problem and "sum over the edges" in problem
