"""The comparison of chapter 07 on any corpus: static networks and SANAS in one table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from nas_core import audio
from nas_core.adaptive.baselines import DSCNN, BCResNet, as_trunk
from nas_core.adaptive.engine import StreamingEngine
from nas_core.adaptive.network import AdaptiveNetwork, Blind, Controller, FixedController
from nas_core.adaptive.training import SanasConfig, SanasRun, summarise, train, window_table
from nas_core.data import data_root
from nas_core.spaces.keyword_cnn import keyword_cnn
from nas_core.supernet import count_params
from nas_core.training import derived_seeds, require

# "base" is cnn-trad-fpool3, "shortcuts" has everything on, "cheapest" only the input shortcut
STATIC = ("base", "shortcuts", "cheapest", "ds_cnn", "bc_resnet")
# what replaces the input of each controller, see `Controller`
BLIND: dict[str, Blind] = {"sanas": None, "blind": "noise", "shuffled": "shuffled"}


@dataclass(frozen=True)
class Model:
    """One line of the comparison; λ and `spend` (see `SanasConfig`) act on a controller only."""

    kind: str  # of STATIC or BLIND
    lam: float = 0.0
    width: int | None = None  # channels, where it is not that of the other models
    spend: float | None = None

    def __post_init__(self):
        known = (*STATIC, *BLIND)
        require(self.kind in known, "kind", self.kind, f"one of {known}")

    @property
    def adaptive(self) -> bool:
        return self.kind in BLIND

    @property
    def name(self) -> str:
        wide = "" if self.width is None else f" width={self.width}"
        price = f" λ={self.lam:g}" if self.spend is None else f" spend={self.spend:g}"
        return self.kind + wide + (price if self.adaptive else "")


@dataclass(frozen=True)
class KeywordProblem:
    """Corpus, features and streams of one experiment."""

    corpus: audio.Corpus
    mfcc: audio.MFCC
    training: audio.StreamSet
    validation: audio.StreamSet
    testing: audio.StreamSet


def keyword_problem(
    folder: str | Path | None = None,
    *,
    keywords: Sequence[str] = audio.KEYWORDS,
    speakers: int = 80,
    sequences: tuple[int, int, int] = (2000, 300, 300),
    mfcc: audio.MFCC | None = None,
    mixing: audio.Mixing | None = None,
    seed: int = 0,
) -> KeywordProblem:
    """Streams from recordings, or from words of synthetic `speakers` when no `folder` is given.

    The folder has the layout of Speech Commands, below the data root (`NAS_DATA`) or absolute.
    `sequences` are for training, validation and testing; about (24000, 3000, 3000) in the thesis.
    """
    if folder:
        corpus = audio.load_speech_commands(data_root() / folder, tuple(keywords), seed=seed)
    else:
        corpus = audio.synthetic_corpus(speakers, keywords=tuple(keywords), seed=seed)
    mfcc = mfcc or audio.MFCC()
    streams = [
        audio.make_streams(corpus, split, count, mfcc=mfcc, mixing=mixing, seed=seed)
        for split, count in zip(("training", "validation", "testing"), sequences, strict=True)
    ]
    return KeywordProblem(corpus, mfcc, *streams)


def build(
    model: Model,
    problem: KeywordProblem,
    *,
    width: int = 64,
    features: int = 128,
    conv1: Sequence[int] = (20, 8),
    conv2: Sequence[int] = (10, 4),
    hidden: int = 100,
    leak: float | None = None,
    seed: int = 0,
) -> AdaptiveNetwork:
    """A model of the comparison: a keyword CNN of this shape, and `hidden` units of the controller.

    The bottleneck of the CNN is half as wide as its convolutions. Φ (`features`) must be small
    against the difficulty of the words: the cheapest path is a network with Φ as its hidden layer,
    and where that does as well as everything together there is nothing to adapt.

    `leak`, the slope of the CNN's units below 0, is 0.1 for "base" and 0 for the others. With
    shortcuts each feature is the sum of four units; without them it is one, and all eight of those
    died in the first epoch (recordings, lr 3e-3, one seed of three).
    """
    torch.manual_seed(derived_seeds(seed, 1)[0])
    if model.kind in ("ds_cnn", "bc_resnet"):
        trunk = as_trunk(
            (DSCNN if model.kind == "ds_cnn" else BCResNet)(problem.mfcc), problem.mfcc
        )
    else:
        base = model.kind == "base"
        trunk = keyword_cnn(
            shortcuts=not base,
            head=False,
            width=model.width or width,
            bottleneck=max(16, width // 2),
            features=features,
            conv1=(conv1[0], conv1[1]),
            conv2=(conv2[0], conv2[1]),
            input_shape=(1, *problem.mfcc.shape),
            leak=0.1 * base if leak is None else leak,
        )
    controller: Controller | FixedController
    if model.adaptive:
        size = trunk.graph.shapes[trunk.graph.sink][0]
        controller = Controller(size, trunk.num_edges, hidden=hidden, blind=BLIND[model.kind])
    else:
        names = [edge.name for edge in trunk.graph.edges]
        kept = [model.kind != "cheapest" or name == "shortcut input" for name in names]
        controller = FixedController(torch.tensor(kept))
    # The first layer of BC-ResNet inverts the DCT; maps that are normalised would not fit it.
    moments = None if model.kind == "bc_resnet" else problem.training.moments()
    return AdaptiveNetwork(trunk, len(problem.corpus.classes), controller, moments=moments)


def compare(
    problem: KeywordProblem,
    models: Sequence[Model],
    config: SanasConfig,
    *,
    stream_seconds: float = 0.0,
    checkpoints: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    **shape,
) -> tuple[pd.DataFrame, dict[str, AdaptiveNetwork], dict[str, SanasRun]]:
    """Train models by the same loop; measure them on validation, test and a stream of some seconds.

    Training runs on `device`; streams are processed on the CPU, packet by packet. `shape` goes to
    `build`. Returns a row per model, and the models and runs by name, e.g. "sanas λ=0.1".
    """
    rows, networks, runs = [], {}, {}
    training, validation = problem.training.to(device), problem.validation.to(device)
    stream = audio.evaluation_stream(problem.corpus, stream_seconds) if stream_seconds else None
    for model in models:
        name, settings = model.name, replace(config, lam=model.lam, spend=model.spend)
        network = build(model, problem, seed=config.seed, **shape).to(device)
        file, label = checkpoints and checkpoints / f"{name}.pt", name if progress else False
        run = train(network, training, validation, settings, checkpoint=file, progress=label)
        row = {"model": name, **asdict(model), "seed": config.seed}
        row |= {f"validation_{k}": run.history[k].iloc[-1] for k in ("accuracy", "macs")}
        row |= summarise(window_table(network, problem.testing.to(device)))
        network.cpu()
        row |= {"full_macs": network.full_macs, "controller_macs": network.controller.macs}
        row["params"] = count_params(network)
        if stream is not None and model.kind != "shuffled":  # one stream has no others beside it
            trace = StreamingEngine(network, problem.mfcc, problem.corpus.classes).run(stream.audio)
            row |= audio.score(trace.found, stream.truth, stream.seconds).summary()
            row["stream_macs"] = float(trace.macs[1:].mean())  # step 0 is priced by z_0
            row["architectures"] = trace.architectures([e.name for e in network.trunk.graph.edges])
        rows.append(row)
        networks[name], runs[name] = network, run
    return pd.DataFrame(rows), networks, runs
