"""Time of streaming inference: what cheap architectures save, features and controller included.

    python benchmarks/streaming.py [--seconds 20] [--rounds 5]

At full size: fixed architectures against everything. Then the architectures that a SANAS trained
on recordings took in an hour (`data/results/07_sanas/hour.json`), in its shares, against the two
static networks next to it in words of that hour recognised, one better and one worse; all at the
size they were trained at, and with eight times their channels, the size of the thesis. Time does
not depend on the weights, so nothing is trained here. All are measured in turn, the fastest round
counts.
"""

from __future__ import annotations

import argparse

import pandas as pd
import torch
from common import write_results

from nas_core.adaptive import AdaptiveNetwork, Controller, FixedController, StreamingEngine
from nas_core.audio import MFCC
from nas_core.spaces.keyword_cnn import keyword_cnn
from nas_core.training import one_thread
from nas_core.workbook.results import read_results

CLASSES = tuple(f"class {c}" for c in range(12))
PARTS = {
    "base": {"conv1", "conv2", "lin1", "lin2"},
    "conv1 and its shortcut": {"conv1", "shortcut conv1"},
    "the cheapest architecture": {"shortcut input"},
}
TRAINED = {"features": 8, "conv1": (6, 6), "conv2": (5, 3), "input_shape": (1, 26, 20)}
TRAINED_MFCC = MFCC(n_fft=960, hop=640, n_mfcc=20)


class Scheduled(Controller):
    """Computes what a controller computes, then takes architectures drawn from given shares."""

    def __init__(self, features: int, masks: torch.Tensor, shares: torch.Tensor, hidden: int):
        super().__init__(features, masks.shape[1], hidden=hidden)
        g = torch.Generator().manual_seed(0)
        self.masks = masks[torch.multinomial(shares, 1000, replacement=True, generator=g)]
        self.count = 0

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        super().logits(state)
        self.count += 1
        return (self.masks[self.count % 1000] * 60.0 - 30.0).expand(len(state), -1)


def engine(trunk, controller, mfcc: MFCC) -> StreamingEngine:
    return StreamingEngine(AdaptiveNetwork(trunk, 12, controller), mfcc, CLASSES)


def fixed(kept: set[str] | None = None) -> StreamingEngine:
    """The full-size network with these modules, everything when None."""
    trunk = keyword_cnn(head=False)
    mask = torch.tensor([kept is None or e.name in kept for e in trunk.graph.edges])
    return engine(trunk, FixedController(mask), MFCC())


def scheduled(taken: dict[str, float], full: bool) -> StreamingEngine:
    """Architectures in these shares of the steps."""
    trunk = keyword_cnn(head=False) if full else keyword_cnn(head=False, width=8, **TRAINED)
    kept = [set(name.split(" + ")) for name in taken]
    masks = torch.tensor([[e.name in k for e in trunk.graph.edges] for k in kept])
    size = (128, 100) if full else (8, 32)
    controller = Scheduled(size[0], masks, torch.tensor(list(taken.values())), size[1])
    return engine(trunk, controller, MFCC() if full else TRAINED_MFCC)


def static(width: int, full: bool) -> StreamingEngine:
    """Everything on, with `width` of eight channels (times eight at full size)."""
    shape = {"width": 8 * width} if full else {"width": width, **TRAINED}
    trunk = keyword_cnn(head=False, bottleneck=32 if full else 16, **shape)
    every = torch.ones(trunk.num_edges, dtype=torch.bool)
    return engine(trunk, FixedController(every), MFCC() if full else TRAINED_MFCC)


def recorded() -> tuple[dict[str, float], float, dict[int, float]]:
    """SANAS' shares and its % of words correct; that of the static nets next to it, by width."""
    record = next(r for r in read_results("07_sanas") if r["name"] == "hour")
    rows = pd.DataFrame(record["rows"])
    sanas = rows[rows.kind == "sanas"]
    taken, heard = pd.DataFrame(list(sanas.architectures)).fillna(0).mean(), sanas.correct.mean()
    shortcuts = rows[rows.kind == "shortcuts"]
    others = shortcuts.groupby(shortcuts.width.fillna(8).astype(int)).correct.mean().sort_values()
    beside = pd.concat([others[others < heard].tail(1), others[others >= heard].head(1)])
    return taken.to_dict(), float(heard), beside.to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    one_thread()
    torch.manual_seed(0)
    audio = 0.1 * torch.randn(16_000 * args.seconds)
    taken, heard, beside = recorded()
    engines = {"everything": fixed(), **{name: fixed(kept) for name, kept in PARTS.items()}}
    for full in (True, False):
        engines["SANAS", full] = scheduled(taken, full)
        engines |= {(width, full): static(width, full) for width in beside}
    ms = dict.fromkeys(engines, float("inf"))
    macs = {}
    for _ in range(args.rounds):
        for name, e in engines.items():
            trace = e.run(audio)
            ms[name] = min(ms[name], e.ms_per_decision)
            macs[name] = float(trace.macs.mean())

    def compared(what: str, one, other) -> dict:
        share = macs[one] / macs[other]
        return {
            "what": what, "value": round(ms[one] / ms[other], 3), "unit": "ratio",
            "versus": f"{ms[one]:.2f} ms / {ms[other]:.2f} ms, {100 * share:.3g} % of the macs",
        }  # fmt: skip

    rows = [
        {
            "what": "keyword network of full size, everything on: real-time factor",
            "value": round(ms["everything"] / 200, 4), "unit": "ratio",
            "versus": f"{ms['everything']:.2f} ms per decision, five a second",
        }
    ]  # fmt: skip
    for name in PARTS:
        rows.append(compared(f"keyword stream, full size: {name} / everything", name, "everything"))
    for full, size in ((True, "full size"), (False, "the size of the training")):
        for width, correct in beside.items():
            channels = f"{8 * width if full else width} channels"
            what = f"SANAS ({heard:.0f} % of words) / static, {channels} ({correct:.0f} %)"
            rows.append(compared(f"keyword stream, {size}: {what}", ("SANAS", full), (width, full)))
    write_results("streaming", rows)


if __name__ == "__main__":
    main()
