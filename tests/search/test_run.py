"""What a run says of itself, on runs that were constructed to have one fault each."""

import pandas as pd
import pytest
import torch

from nas_core.search import Run
from nas_core.supernet import Architecture
from tests.search.problems import xor_net

GRAPH = xor_net().graph  # useful, linear, idle 1, idle 2 (parallel), then the head
EPOCHS, WARMUP = 20, 4


def run_of(gamma, *, loss=(0.7, 0.3), cost=90.0, budget=100.0, full=200.0) -> Run:
    """A run whose γ ends each epoch of the search as `gamma` `[16, 5]` says."""
    probabilities = torch.cat([torch.ones(WARMUP, len(GRAPH)), gamma])
    history = pd.DataFrame(
        {
            "epoch": range(EPOCHS),
            "phase": ["warm-up"] * WARMUP + ["search"] * (EPOCHS - WARMUP),
            "loss": torch.linspace(*loss, EPOCHS).tolist(),
        }
    )
    mask = GRAPH.reachable(probabilities[-1] > 0.5)
    return Run(
        GRAPH, history, probabilities, Architecture.from_mask(GRAPH, mask), cost, budget, full,
        "computation", "macs", {}, 0, {},
    )  # fmt: skip


def settling(epoch: int, final=(1.0, 0.0, 0.0, 0.0, 1.0)) -> torch.Tensor:
    """γ that go from 0.95 to `final` in a straight line and arrive in this epoch of the search."""
    way = (torch.arange(1, EPOCHS - WARMUP + 1) / epoch).clamp(max=1).unsqueeze(1)
    return 0.95 + way * (torch.tensor(final) - 0.95)


def test_a_sound_run_has_nothing_to_remark():
    run = run_of(settling(14))
    assert run.diagnosis() == [] and run.statement().endswith("meets the budget of 100.")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (run_of(settling(4)), "Γ stood still after 4 of 16 epochs"),
        (run_of(settling(14), cost=40.0), "60% of the budget is unused"),
        (run_of(settling(14, (1.0, 0.6, 0.4, 0.0, 1.0))), "2 of 5 gates are undecided"),
        (run_of(settling(14), cost=120.0), "Raise lam"),
        (run_of(settling(14), loss=(2.3, 2.31)), "did not learn"),
    ],
)
def test_each_fault_is_named_with_what_to_change(run, words):
    (remark,) = run.diagnosis()
    assert words in remark and run.statement().endswith(remark)
    assert any(setting in remark for setting in ("gamma_lr", "lam", "lr"))


def test_a_budget_that_forbids_nothing_is_not_called_unused():
    assert run_of(settling(14), cost=90.0, budget=1000.0, full=200.0).diagnosis() == []


def test_gates_that_nothing_reaches_are_not_counted_as_undecided():
    """With the head's source cut off, nothing is found and the open head does not matter."""
    run = run_of(settling(14, (0.0, 0.0, 0.0, 0.0, 0.5)))
    assert run.architecture.is_empty and "nothing was found" in run.statement()
    assert not any("undecided" in remark for remark in run.diagnosis())


def test_a_gamma_that_never_moves_is_undecided_or_frozen():
    still = run_of(torch.tensor([0.95, 0.95, 0.95, 0.95, 1.0]).expand(EPOCHS - WARMUP, -1))
    assert any("stood still after 1 of 16" in remark for remark in still.diagnosis())
    open_gates = run_of(torch.tensor([0.6, 0.5, 0.5, 0.5, 1.0]).expand(EPOCHS - WARMUP, -1))
    assert any("4 of 5 gates are undecided" in remark for remark in open_gates.diagnosis())


def test_a_gamma_too_slow_to_close_a_gate_is_told_to_go_faster():
    still = run_of(settling(400), cost=150.0)
    assert still.diagnosis()[0].startswith("No gate closed in 16 epochs")
    assert "raise gamma_lr" in still.diagnosis()[0]
    assert not any("lower gamma_lr" in remark for remark in still.diagnosis())


def test_an_interrupted_warm_up_has_no_remarks():
    run = run_of(settling(14))
    run.history, run.probabilities = run.history[:WARMUP], run.probabilities[:WARMUP]
    assert run.diagnosis() == []
