"""A set of one-word clips with speakers, splits and background noises; Speech Commands' layout."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nas_core.audio.files import read_all
from nas_core.training import require

RATE = 16_000
BACKGROUND, UNKNOWN = "bg-noise", "unknown"
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
NOISE_FOLDER = "_background_noise_"
SPLITS = ("training", "validation", "testing")


@dataclass
class Corpus:
    """Clips of one second with one word each; class 0 is the absence of a word."""

    clips: Tensor  # int16 [N, 16000]
    words: np.ndarray  # str [N], as spoken
    speakers: np.ndarray  # str [N]
    splits: np.ndarray  # str [N]: training, validation or testing; no speaker is in two of them
    noises: list[Tensor]  # float32 [n], background recordings of any length
    keywords: tuple[str, ...] = KEYWORDS
    skipped: tuple[str, ...] = ()  # one message per unusable file or unused list

    def __post_init__(self):
        require(len(self.noises) > 0, "number of background noises", 0, "at least 1")
        if missing := sorted(set(self.keywords) - set(self.words)):
            raise ValueError(f"no clip of the keywords {missing}; say which keywords to use")

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def classes(self) -> tuple[str, ...]:
        return (BACKGROUND, UNKNOWN, *self.keywords)

    def clip(self, i: int) -> Tensor:
        """float32 `[16000]` in −1…1."""
        return self.clips[i].float() / 32768

    def label(self, i: int) -> int:
        """Number of the class of clip i: its keyword, or 1 for every other word."""
        return 2 + self.keywords.index(self.words[i]) if self.words[i] in self.keywords else 1

    def indices(self, split: str) -> np.ndarray:
        """Numbers of the clips of a split."""
        require(split in SPLITS, "split", split, f"one of {SPLITS}")
        return np.flatnonzero(self.splits == split)


def speaker_of(filename: str) -> str:
    """Speaker of a clip: the part of the file name before `_nohash_`."""
    return re.sub(r"_nohash_.*$", "", Path(filename).stem)


def split_of(filename: str, validation: float = 10.0, testing: float = 10.0) -> str:
    """Split of a clip by the published rule: a hash of the speaker, stable as clips are added.

    `validation` and `testing` are percentages.
    """
    shares = (validation, testing)
    require(min(shares) >= 0 and sum(shares) <= 100, "(validation, testing)", shares, "percentages")
    largest = 2**27 - 1
    digest = int(hashlib.sha1(speaker_of(filename).encode()).hexdigest(), 16)
    share = (digest % (largest + 1)) * (100.0 / largest)
    if share < validation:
        return "validation"
    return "testing" if share < validation + testing else "training"


def load_speech_commands(
    folder: str | Path,
    keywords: Sequence[str] = KEYWORDS,
    *,
    limit_per_word: int | None = None,
    seed: int = 0,
) -> Corpus:
    """Read a folder with the layout of Speech Commands v0.01 or v0.02; other words are `unknown`.

    Splits come from `validation_list.txt` and `testing_list.txt` where both exist, else from the
    published hash of the speaker. Entries without a clip (in a partial copy) and files of other
    types are reported in `skipped`. `limit_per_word` clips of each word are chosen at random.

    Raises FileNotFoundError without background noises, ValueError where no clip or no noise can be
    read, a keyword has no clip, or a list names none of the clips.
    """
    folder = Path(folder)
    noise_files, _ = _recordings(folder / NOISE_FOLDER)
    if not noise_files:
        wanted = "point to an unpacked Speech Commands folder (it holds the folders yes, no, …)"
        get = "get one with\n    nas-workbook data fetch speech_commands_v0.02"
        raise FileNotFoundError(f"no {NOISE_FOLDER}/*.wav below {folder}: {wanted}, or {get}")
    rng = np.random.default_rng(seed)
    paths: list[Path] = []
    notes: list[str] = []
    everything: list[str] = []  # names of all clips, whatever the limit
    for word in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != NOISE_FOLDER):
        files, others = _recordings(word)
        everything += map(_entry, files)
        notes += [f"{path} is no .wav file" for path in others]
        if limit_per_word is not None and len(files) > limit_per_word:
            files = [files[i] for i in sorted(rng.permutation(len(files))[:limit_per_word])]
        paths += files
    listed = _listed_splits(folder, set(everything), notes)
    audio, kept, skipped = read_all(paths, RATE)
    noises, _, skipped_noises = read_all(noise_files, RATE)
    if not audio or not noises:
        raise ValueError(f"no readable {'noise' if audio else 'clip'} below {folder}")
    clips = as_int16([pad(a[:RATE], (0, max(0, RATE - len(a)))) for a in audio])
    words = np.array([p.parent.name for p in kept])
    speakers = np.array([speaker_of(p.name) for p in kept])
    splits = [listed.get(_entry(p), "training") if listed else split_of(p.name) for p in kept]
    notes = [*skipped, *skipped_noises, *notes]
    where = np.array(splits, dtype=str)
    return Corpus(clips, words, speakers, where, noises, tuple(keywords), tuple(notes))


def _recordings(folder: Path) -> tuple[list[Path], list[Path]]:
    """Wav files of a folder in order, whatever the case of their suffix, and all other files."""
    files = sorted(p for p in folder.glob("*") if not p.name.startswith("."))
    wav = [p for p in files if p.suffix.lower() == ".wav"]
    return wav, [p for p in files if p not in set(wav) and p.is_file()]


def _entry(path: str | Path) -> str:
    """How a clip is named in the lists: `yes/0a7c2a8d_nohash_0.wav`, in small letters."""
    return "/".join(str(path).replace("\\", "/").split("/")[-2:]).lower()


def _listed_splits(folder: Path, clips: set[str], notes: list[str]) -> dict[str, str]:
    """Split of every listed clip, none where a list is missing; `notes` gets what was left over."""
    files = {s: folder / f"{s}_list.txt" for s in ("validation", "testing")}
    if not all(path.is_file() for path in files.values()):
        return {}
    listed: dict[str, str] = {}
    for split, path in files.items():
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        entries = [_entry(line.strip()) for line in lines if line.strip()]
        unknown = [entry for entry in entries if entry not in clips]
        if entries and len(unknown) == len(entries):
            needed = f"it begins with {lines[0]!r}; lines look like yes/0a7c2a8d_nohash_0.wav"
            raise ValueError(f"{path} names none of the clips below {folder}: {needed}")
        if unknown:
            notes.append(f"{path}: {len(unknown)} of {len(entries)} entries name no clip")
        listed |= dict.fromkeys(entries, split)
    return listed


def as_int16(clips: list[Tensor]) -> Tensor:
    """int16 `[N, n]` of clips in −1…1, half the memory of float32 and no loss for 16-bit files."""
    return torch.stack([(c * 32768).round().clamp(-32768, 32767).to(torch.int16) for c in clips])


def word_extent(clip: Tensor, share: float = 0.98) -> tuple[int, int]:
    """Samples (begin, end) that hold the central `share` of a clip's energy: the word's signal."""
    energy = clip.double().square().cumsum(0)
    if energy[-1] == 0:
        return 0, len(clip)
    tail = (1 - share) / 2 * energy[-1]
    begin = int(torch.searchsorted(energy, tail))
    return begin, int(torch.searchsorted(energy, energy[-1] - tail)) + 1
