"""Chapter 07: what each of its bands must reject, computed with the mistake built in."""

from functools import cache

import pandas as pd
import torch

from nas_core.adaptive import SanasConfig, cost_by_step, returns, summarise, train, window_table
from nas_core.adaptive.probe import ProbeStreams, probe_network
from tests.notebooks.book import claimed, control_tests

BANDS = claimed("07")
CHANGE = 0.15


@cache
def search(lam: float):
    """The chapter's probe; its model and the summary with costs as shares."""
    model = probe_network()
    config = SanasConfig(epochs=8, batch_size=64, lr=0.02, lam=lam, warmup_epochs=1)
    train(model, ProbeStreams.draw(change=CHANGE), None, config, progress=False)
    fresh = ProbeStreams.draw(300, change=CHANGE, seed=100)
    found = summarise(window_table(model, fresh).query("step > 0"))
    return model, {k: v / model.full_macs if k.startswith("macs") else v for k, v in found.items()}


def best(probability: float) -> float:
    model = probe_network()
    cheap, dear = (model.edge_macs / model.full_macs).tolist()
    return probability * dear + cheap + model.overhead / model.full_macs


def ratio(lam: float) -> float:
    found = search(lam)[1]
    return found["macs_background"] / found["macs_words"]


def above_a_mixture(lam: float) -> float:
    model, found = search(lam)
    dear = float(model.edge_macs[1]) / model.full_macs
    return found["accuracy"] - (1 - (1 - found["macs"]) / dear * 0.25)


@cache
def gap(blind: str | None) -> float:
    """Words minus silence at equal step, of a search driven to half of the full cost."""
    model = probe_network(blind=blind)
    config = SanasConfig(epochs=10, lr=0.02, lam=1.0, spend=0.5, warmup_epochs=1)
    train(model, ProbeStreams.draw(change=CHANGE), None, config, progress=False)
    draw, fresh = torch.Generator().manual_seed(0), ProbeStreams.draw(300, change=CHANGE, seed=100)
    steps = cost_by_step(window_table(model, fresh, generator=draw).query("step > 0"))
    return float((steps.words - steps.background).mean()) / model.full_macs


def own_credit_for_the_whole() -> float:
    """The estimate of the sixteen histories differs when steps are paid with their own rewards."""
    rewards = torch.rand(16, 2, generator=torch.Generator().manual_seed(0))
    own, whole = (returns(rewards, SanasConfig(credit=c)) for c in ("step", "sequence"))
    return float((own - whole).abs().max())


def always_background() -> float:
    """Balanced accuracy of a network that has learned to say nothing."""
    classes = [f"c{i}" for i in range(12)]
    codes = torch.arange(1200) % 12
    table = pd.DataFrame({"label": pd.Categorical.from_codes(codes, classes)})
    table["prediction"] = pd.Categorical.from_codes(0 * codes, classes)
    return summarise(table.assign(step=1, share=0.0, macs=1, leaning=1.0))["balanced_accuracy"]


CONTROLS = {
    "difference of estimate and exact gradient": {"own credit": own_credit_for_the_whole},
    "cost on silence minus that of the best policy": {
        "λ = 0": lambda: search(0.0)[1]["macs_background"] - best(CHANGE)
    },
    "cost on words minus that of the best policy": {
        "λ = 4": lambda: search(4.0)[1]["macs_words"] - best(1 - CHANGE)
    },
    "cost on silence / cost on words": {"λ = 0": lambda: ratio(0.0), "λ = 4": lambda: ratio(4.0)},
    "accuracy minus that of the best policy": {
        "λ = 4": lambda: search(4.0)[1]["accuracy"] - (1 - CHANGE / 4)
    },
    "correlation of cost and share of the word": {
        "λ = 0": lambda: search(0.0)[1]["share_correlation"],
        "λ = 4": lambda: search(4.0)[1]["share_correlation"],
    },
    "share of the cost that is kept at λ = 0": {"λ = 1": lambda: search(1.0)[1]["macs"]},
    "share of the cost that is kept at λ = 4": {"λ = 1": lambda: search(1.0)[1]["macs"]},
    "cost on silence / cost on words, trained blind": {"hearing": lambda: ratio(1.0)},
    "cost of words minus silence at equal step, own stream": {
        "noise": lambda: gap("noise"),
        "another stream": lambda: gap("shuffled"),
    },
    "cost of words minus silence at equal step, another stream": {"hears": lambda: gap(None)},
    "accuracy above that of a mixture by lot at the same cost": {
        "λ = 0": lambda: above_a_mixture(0.0),
        "λ = 4": lambda: above_a_mixture(4.0),
    },
    "balanced accuracy of the static network (chance is 0.08)": {"silent": always_background},
    "balanced accuracy of SANAS (chance is 0.08)": {"silent": always_background},
    "balanced accuracy of DS-CNN (chance is 0.08)": {"silent": always_background},
    "cost on silence / cost on words, deafened after training": {"hearing": lambda: ratio(1.0)},
    "accuracy above that of a mixture by lot, deafened after training": {
        "hearing": lambda: above_a_mixture(1.0)
    },
    "variance of the gradient, whole sequence / own step": {"own step": lambda: 1.0},
}

test_every_band_has_a_control, test_the_band_rejects_the_mistake = control_tests(BANDS, CONTROLS)
