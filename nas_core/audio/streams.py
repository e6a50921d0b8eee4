"""Streams with words in them: training sequences and long evaluation streams (section 4.4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nas_core.audio.corpus import RATE, SPLITS, UNKNOWN, Corpus, word_extent
from nas_core.audio.features import MFCC, assemble
from nas_core.training import fingerprint, require, write_atomic


@dataclass(frozen=True)
class Mixing:
    """How words and backgrounds are combined."""

    noise_probability: float = 0.8  # of any background at all
    noise_ratio: float = 0.3  # amplitude of background to word is U(0, this); 0.3 is 10.5 dB SNR
    unknown: float = 0.1  # share of sequences with a word that is no keyword
    silence: float = 0.1  # share of sequences without a word
    seconds: tuple[float, float] = (1.0, 3.0)  # length of a sequence

    def __post_init__(self):
        ratio, noise, seconds = self.noise_ratio, self.noise_probability, self.seconds
        require(0 <= ratio <= 10 ** (-5 / 20), "noise_ratio", ratio, "0…0.562: 5 dB or more of SNR")
        require(0 <= noise <= 1, "noise_probability", noise, "in 0…1")
        shares = (self.unknown, self.silence)
        require(min(shares) >= 0 and sum(shares) <= 1, "(unknown, silence)", shares, "0…1 in sum")
        require(1 <= seconds[0] <= seconds[1], "seconds", seconds, "(shortest ≥ 1, longest)")


class Sequence(NamedTuple):
    """One training sequence."""

    audio: Tensor  # float32 [n]
    word: int  # class, 0 when there is none
    begin: int  # first sample of the word's signal
    end: int  # one past its last


def word_share(windows: int, begin: int, end: int, mfcc: MFCC) -> np.ndarray:
    """Share `[T]` of the word's signal (samples begin…end) that each window holds."""
    start = np.arange(windows) * mfcc.step
    overlap = np.minimum(start + mfcc.window, end) - np.maximum(start, begin)
    return np.clip(overlap, 0, None) / max(1, end - begin)


def window_labels(share: np.ndarray, word: int) -> np.ndarray:
    """A window is labelled with the word when it holds at least half of its signal (fig. 4.7)."""
    return np.where(share >= 0.5, word, 0)


def make_sequence(corpus: Corpus, split: str, rng: np.random.Generator, mixing: Mixing) -> Sequence:
    """Background of random length with one word at a random place, or without any."""

    def noise(level: float) -> Tensor:
        if rng.random() >= mixing.noise_probability:
            return torch.zeros(n)
        return level * rng.uniform(0, mixing.noise_ratio) * _unit_noise(corpus, n, rng)

    n = int(rng.uniform(*mixing.seconds) * RATE)
    audio, kind = torch.zeros(n), rng.random()
    if kind < mixing.silence:
        level = 10 ** (rng.uniform(-40, -14) / 20) / mixing.noise_ratio if mixing.noise_ratio else 0
        return Sequence(audio + noise(level), 0, 0, 0)
    i = _draw_clip(corpus, split, rng, unknown=kind < mixing.silence + mixing.unknown)
    clip, (first, last) = corpus.clip(i), word_extent(corpus.clip(i))
    # Only the word has to fit; the silence around it in the clip may be cut off.
    at = int(rng.integers(0, n - (last - first) + 1)) - first
    lo, hi = max(0, at), min(n, at + len(clip))
    audio[lo:hi] = clip[lo - at : hi - at]
    audio += noise(clip[first:last].square().mean().item() ** 0.5)
    return Sequence(audio.clamp(-1, 1), corpus.label(i), at + first, at + last)


@dataclass
class StreamSet:
    """N sequences of at most T windows, padded; features are kept without repetition."""

    mfcc: MFCC
    classes: tuple[str, ...]
    inner: Tensor  # [N, M, n_mfcc], see MFCC.shared_frames; zero beyond the end
    edges: Tensor  # [N, T, 2 · margin, n_mfcc]
    labels: Tensor  # int64 [N, T]; 0 beyond the end
    share: Tensor  # float32 [N, T], share of the word's signal that the window holds
    word: Tensor  # int64 [N], class of the word in the sequence
    length: Tensor  # int64 [N], number of windows

    def __len__(self) -> int:
        return len(self.length)

    @property
    def valid(self) -> Tensor:
        """bool `[N, T]`, False for padding."""
        return torch.arange(self.labels.shape[1], device=self.length.device) < self.length[:, None]

    def windows(self, index: Tensor) -> Tensor:
        """Maps `[B, T', 1, F, n_mfcc]`, T' the longest among these sequences."""
        longest = int(self.length[index].max())
        return assemble(self.inner[index], self.edges[index, :longest], self.mfcc).unsqueeze(2)

    def to(self, device: torch.device | str) -> StreamSet:
        """A copy whose tensors live on `device`."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return StreamSet(self.mfcc, self.classes, **moved)

    def fingerprint(self) -> str:
        """Identity of all values, for checkpoints."""
        return fingerprint(self.classes, *(v for v in vars(self).values() if isinstance(v, Tensor)))

    def class_weights(self) -> Tensor:
        """Weights `[C]` that give all occurring classes equal influence; mean 1 over windows."""
        counts = torch.bincount(self.labels[self.valid], minlength=len(self.classes)).float()
        present = counts > 0
        weights = counts.sum() / (present.sum() * counts.clamp(min=1))
        return torch.where(present, weights, 0.0)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `[n_mfcc]` of each coefficient over all real frames."""
        frames = self.inner[(self.inner != 0).any(2)]
        return frames.mean(0), frames.std(0).clamp(min=1e-3)


def make_streams(
    corpus: Corpus,
    split: str,
    count: int,
    *,
    mfcc: MFCC | None = None,
    mixing: Mixing | None = None,
    seed: int = 0,
) -> StreamSet:
    """`count` sequences from the clips of a split, a pure function of the arguments.

    The thesis uses about 24,000 for training and 3,000 each for validation and testing.
    """
    mfcc, mixing = mfcc or MFCC(), mixing or Mixing()
    require(split in SPLITS, "split", split, f"one of {SPLITS}")
    require(count >= 1, "count", count, "at least 1")
    require(mfcc.rate == RATE, "mfcc.rate", mfcc.rate, f"{RATE} Hz, the rate of the clips")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    parts, words = [], []
    for _ in range(count):
        audio, word, begin, end = make_sequence(corpus, split, rng, mixing)
        inner, edges = mfcc.shared_frames(audio)
        share = word_share(len(edges), begin, end, mfcc) if word else np.zeros(len(edges))
        labels = torch.from_numpy(window_labels(share, word))
        parts.append((inner, edges, labels, torch.from_numpy(share).float()))
        words.append(word)
    padded = [pad_sequence([*part], batch_first=True) for part in zip(*parts, strict=True)]
    padded += [torch.tensor(words), torch.tensor([len(edges) for _, edges, _, _ in parts])]
    return StreamSet(mfcc, corpus.classes, *padded)


class Spoken(NamedTuple):
    """An entry of the ground truth."""

    word: str  # a class name
    ms: float  # where the one-second clip of the word starts


@dataclass
class EvaluationStream:
    """A long recording with words roughly every three seconds over changing backgrounds."""

    audio: Tensor  # float32 [n]
    truth: list[Spoken]

    @property
    def seconds(self) -> float:
        return len(self.audio) / RATE


def evaluation_stream(
    corpus: Corpus,
    seconds: float = 3600.0,
    *,
    split: str = "testing",
    gap: float = 3.0,
    unknown: float = 0.1,
    noise_ratio: float = 0.3,
    seed: int = 0,
) -> EvaluationStream:
    """A stream with ground truth, deterministic in `seed`; the thesis uses one hour.

    A word starts every `gap` ± 0.75 seconds (at least 2), a share `unknown` of them is no keyword.
    About every 20 seconds a new background fades in; `noise_ratio` bounds its amplitude to words.
    """
    require(gap >= 2, "gap", gap, "at least 2 s, as words last one")
    rng = np.random.default_rng([seed, 7])
    n = int(seconds * RATE)
    words, levels, truth = torch.zeros(n), [], []
    at = int(rng.uniform(1, 2) * RATE)
    while at + RATE <= n:
        i = _draw_clip(corpus, split, rng, rng.random() < unknown)
        clip = corpus.clip(i)
        first, last = word_extent(clip)
        levels.append(clip[first:last].square().mean().item() ** 0.5)
        words[at : at + RATE] += clip
        truth.append(Spoken(corpus.classes[corpus.label(i)], at * 1000 / RATE))
        at += int((gap + rng.uniform(-0.75, 0.75)) * RATE)
    loudest, fade, at = float(noise_ratio * np.mean(levels or [0.1])), RATE // 2, 0
    background, ramp = torch.zeros(n + fade), torch.linspace(0, 1, fade)
    while at < n:
        length = min(int(rng.uniform(10, 30) * RATE), n - at)
        piece = loudest * rng.uniform(0, 1) * _unit_noise(corpus, length + fade, rng)
        piece[:fade] *= ramp
        piece[-fade:] *= 1 - ramp
        background[at : at + length + fade] += piece
        at += length
    return EvaluationStream((words + background[:n]).clamp(-1, 1), truth)


def write_truth(truth: list[Spoken], path: str | Path) -> None:
    """Ground truth in TensorFlow's `streaming_test` format: `word, milliseconds` per line."""
    write_atomic(path, "".join(f"{word}, {ms:.6f}\n" for word, ms in truth))


def _draw_clip(corpus: Corpus, split: str, rng: np.random.Generator, unknown: bool) -> int:
    """Number of a clip; keywords are equally likely, whatever the number of their clips."""
    available = corpus.indices(split)
    is_keyword = np.isin(corpus.words[available], corpus.keywords)
    pool = available[~is_keyword if unknown else is_keyword]
    kind = UNKNOWN if unknown else "keyword"
    require(len(pool) > 0, f"number of {kind} clips in {split}", 0, "at least 1")
    words = np.unique(corpus.words[pool])
    return int(rng.choice(pool[corpus.words[pool] == rng.choice(words)]))


def _unit_noise(corpus: Corpus, n: int, rng: np.random.Generator) -> Tensor:
    """A piece of a random background, of amplitude (root mean square) 1."""
    noise = corpus.noises[rng.integers(len(corpus.noises))]
    if len(noise) < n:
        noise = noise.repeat(-(-n // len(noise)))
    at = int(rng.integers(0, len(noise) - n + 1))
    piece = noise[at : at + n]
    return piece / max(piece.square().mean().item() ** 0.5, 1e-6)
