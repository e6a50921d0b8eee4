"""Spoken words without a download: a source-filter synthesiser with many speakers.

A word is a row of phonemes; each has formants (resonances of the vocal tract), an amount of
voicing and an amount of noise. Speakers differ in pitch, vocal-tract length, tempo, accent (their
own vowel formants, flatter or fuller diphthongs, released or swallowed final stops), breathiness
and microphone. Nothing here is meant to sound natural; it has to be *as confusable* as speech:
"no"/"go", "on"/"off"/"up" and the unknown words share their sounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nas_core.audio.corpus import KEYWORDS, RATE, SPLITS, Corpus, as_int16
from nas_core.training import require

# phoneme: (F1, F2, F3 in Hz, voicing, noise level, noise centre in Hz, noise width in Hz, ms)
_PHONEMES: dict[str, tuple[float, ...]] = {
    "IY": (280, 2250, 2900, 1, 0, 2000, 1000, 130),
    "IH": (400, 1920, 2560, 1, 0, 2000, 1000, 90),
    "EH": (550, 1770, 2490, 1, 0, 2000, 1000, 120),
    "AE": (690, 1660, 2490, 1, 0, 2000, 1000, 140),
    "AH": (640, 1190, 2390, 1, 0, 2000, 1000, 110),
    "AA": (710, 1100, 2540, 1, 0, 2000, 1000, 150),
    "AO": (590, 880, 2540, 1, 0, 2000, 1000, 150),
    "UH": (450, 1030, 2380, 1, 0, 2000, 1000, 90),
    "UW": (310, 870, 2250, 1, 0, 2000, 1000, 120),
    "ER": (490, 1350, 1690, 1, 0, 2000, 1000, 140),
    "Y": (270, 2200, 3000, 0.7, 0, 2000, 1000, 60),
    "W": (290, 610, 2150, 0.7, 0, 2000, 1000, 70),
    "R": (310, 1060, 1380, 0.7, 0, 2000, 1000, 70),
    "L": (360, 1000, 2700, 0.6, 0, 2000, 1000, 70),
    "N": (280, 1500, 2600, 0.4, 0, 2000, 1000, 80),
    "M": (280, 1000, 2200, 0.4, 0, 2000, 1000, 80),
    "S": (300, 1600, 2600, 0, 0.5, 5200, 1400, 120),
    "Z": (300, 1600, 2600, 0.3, 0.3, 5200, 1400, 90),
    "F": (300, 1100, 2300, 0, 0.16, 4200, 3500, 110),
    "V": (300, 1100, 2300, 0.4, 0.1, 4000, 3500, 70),
    "TH": (300, 1400, 2500, 0, 0.14, 4800, 3000, 90),
    "SH": (300, 1700, 2400, 0, 0.5, 3000, 900, 110),
    "HH": (550, 1500, 2500, 0, 0.14, 1500, 1200, 60),
    "-": (400, 1400, 2500, 0, 0, 2000, 1000, 45),
    "p": (350, 900, 2300, 0, 0.25, 900, 900, 30),
    "t": (350, 1700, 2600, 0, 0.4, 3900, 1500, 35),
    "k": (350, 1700, 2300, 0, 0.35, 2000, 700, 40),
    "b": (250, 900, 2300, 0.3, 0.15, 800, 900, 18),
    "d": (250, 1700, 2600, 0.3, 0.22, 3400, 1500, 18),
    "g": (250, 1600, 2200, 0.3, 0.22, 1800, 700, 22),
}  # fmt: skip
_DIPHTHONGS = {"OW": ("AO", "UH"), "AY": ("AA", "IH"), "EY": ("EH", "IY"), "AW": ("AA", "UH")}
_STOPS = "ptkbdg"

LEXICON = {
    "yes": "Y EH S", "no": "N OW", "up": "AH p", "down": "d AW N", "left": "L EH F t",
    "right": "R AY t", "on": "AA N", "off": "AO F", "stop": "S t AA p", "go": "g OW",
    # the rest is `unknown`; half of them rhyme with a keyword
    "bed": "b EH d", "cat": "k AE t", "five": "F AY V", "house": "HH AW S", "nine": "N AY N",
    "one": "W AH N", "seven": "S EH V AH N", "six": "S IH k S", "three": "TH R IY",
    "wow": "W AW", "less": "L EH S", "night": "N AY t", "row": "R OW", "top": "t AA p",
}  # fmt: skip


@dataclass(frozen=True)
class Speaker:
    """A voice, drawn from a seed."""

    pitch: float  # Hz
    tract: float  # factor on all formants: 0.85 (long vocal tract) … 1.2 (child)
    tempo: float  # factor on all durations
    tilt: float  # dB per octave of the voice's spectrum
    breath: float  # noise mixed into the voice
    diphthong: float  # 0: flat, 1: full
    release: float  # probability that a final stop is released
    accent: dict[str, np.ndarray]  # factor on F1…F3 of every phoneme
    microphone: np.ndarray  # dB at 0, 1, … 8 kHz

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Speaker:
        pitch = float(np.exp(rng.uniform(np.log(85), np.log(280))))
        tract = 0.97 + 0.16 * np.log2(pitch / 150) + rng.normal(0, 0.05)
        return cls(
            pitch=pitch,
            tract=float(np.clip(tract, 0.82, 1.22)),
            tempo=float(rng.uniform(0.8, 1.3)),
            tilt=float(rng.uniform(-13, -6)),
            breath=float(rng.uniform(0, 0.15)),
            diphthong=float(rng.uniform(0.3, 1)),
            release=float(rng.uniform(0.2, 1)),
            accent={p: 1 + rng.normal(0, [0.06, 0.05, 0.03]) for p in _PHONEMES},
            microphone=np.cumsum(rng.normal(0, 1.5, 9)),
        )


def say(word: str, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """One utterance, float32 `[n]`, of about 0.25 to 0.9 seconds; peak below 1."""
    require(word in LEXICON, "word", word, f"one of {', '.join(LEXICON)}")
    tracks = _tracks(word, speaker, rng)
    audio = _filtered(_sources(len(tracks) * _HOP, speaker, rng), tracks, speaker)
    level = 10 ** (rng.uniform(-16, -3) / 20)
    return (level * audio / np.abs(audio).max()).astype(np.float32)


_N_FFT, _HOP = 256, 64  # synthesis frames: 16 ms every 4 ms
_WINDOW = torch.hann_window(_N_FFT)


def _tracks(word: str, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Formants, voicing, noise level, centre, width `[T, 7]`, one row per 4 ms."""
    rows = [np.array(_PHONEMES["-"])] * 4
    phones = LEXICON[word].split()
    for i, phone in enumerate(phones):
        parts = _DIPHTHONGS.get(phone, (phone,))
        first = _PHONEMES[parts[0]]
        for part in parts:
            p = np.array(_PHONEMES[part], dtype=float)
            if part != parts[0]:
                p[:3] = np.array(first[:3]) + speaker.diphthong * (p[:3] - first[:3])
            p[:3] *= speaker.accent[part] * (1 + rng.normal(0, 0.03, 3))
            final_stop = phone in _STOPS and i == len(phones) - 1
            if phone in _STOPS:  # the closure before the burst
                rows += [np.array(_PHONEMES["-"])] * round(12 * speaker.tempo)
                if final_stop and rng.random() > speaker.release:
                    continue
            length = p[7] * speaker.tempo * rng.uniform(0.85, 1.2) / 4
            rows += [p] * max(2, round(length))
    rows += [np.array(_PHONEMES["-"])] * 6
    tracks = np.stack(rows)[:, :7]
    kernel = np.hanning(11)[1:-1] / np.hanning(11).sum()  # the vocal tract moves within about 36 ms
    fast = np.hanning(5)[1:-1] / np.hanning(5).sum()
    smooth = [np.convolve(np.pad(c, 4, mode="edge"), kernel, "valid") for c in tracks[:, :3].T]
    level = [np.convolve(np.pad(c, 1, mode="edge"), fast, "valid") for c in tracks[:, 3:5].T]
    return np.stack([*smooth, *level, tracks[:, 5], tracks[:, 6]], 1)


def _sources(n: int, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Glottal pulses and noise `[2, n]`."""
    slope = rng.uniform(-0.35, 0.15)
    contour = 1 + slope * np.linspace(-0.5, 0.5, n) + 0.02 * np.sin(np.arange(n) / RATE * 30)
    rate = speaker.pitch * rng.uniform(0.9, 1.12) * contour / RATE  # pulses per sample
    # Pulses of one sign have a mean, which would become an offset of the vowels: subtract it.
    pulses = np.diff(np.floor(np.cumsum(rate) + rng.random()), prepend=0.0) - rate
    pulses *= np.sqrt(RATE / speaker.pitch) * (1 + rng.normal(0, 0.08, n))
    noise = rng.normal(0, 1, n)
    return np.stack([pulses + speaker.breath * noise, noise])


def _filtered(sources: np.ndarray, tracks: np.ndarray, speaker: Speaker) -> np.ndarray:
    """Short-time filtering of both sources `[2, n]` with the moving formants."""
    f = np.fft.rfftfreq(_N_FFT, 1 / RATE).astype(np.float32)
    higher = np.tile([3500.0, 4500.0], (len(tracks), 1))
    formants = (np.concatenate([tracks[:, :3], higher], 1) * speaker.tract).astype(np.float32)
    damping = np.ones((len(tracks), len(f)), dtype=np.float32)  # 1 / |H|² of all resonances
    for formant, width in zip(formants.T[..., None], (70, 90, 140, 220, 300), strict=True):
        ratio = f / formant
        damping *= np.square(1 - ratio * ratio) + np.square(ratio * (width / formant))
    microphone = 10 ** (np.interp(f, np.arange(9) * 1000.0, speaker.microphone) / 20)
    tilt = 10 ** (speaker.tilt / 20 * np.log2(np.maximum(f, 100) / 100))
    vocal = (tilt * microphone) * tracks[:, 3:4] / np.sqrt(damping)
    hiss = np.exp(-0.5 * ((f - tracks[:, 5:6] * speaker.tract) / tracks[:, 6:7]) ** 2)
    hiss *= 0.35 * microphone * tracks[:, 4:5]
    vocal[:, 0] = hiss[:, 0] = 0  # no sound at 0 Hz
    sound = torch.from_numpy(sources.astype(np.float32))
    spectra = torch.stft(sound, _N_FFT, _HOP, window=_WINDOW, return_complex=True)[..., :-1]
    gains = torch.from_numpy(np.stack([vocal, hiss]).astype(np.float32)).mT
    return torch.istft((spectra * gains).sum(0), _N_FFT, _HOP, window=_WINDOW).numpy()


def background_noises(rng: np.random.Generator, seconds: float = 20.0) -> list[Tensor]:
    """Six backgrounds: white, pink, a hum, a machine, a babble of voices, clicks of dishes."""
    n = int(seconds * RATE)
    f = np.fft.rfftfreq(n, 1 / RATE)

    def coloured(power: float, low: float = 20.0) -> np.ndarray:
        spectrum = np.fft.rfft(rng.normal(size=n)) / np.maximum(f, low) ** (power / 2)
        return np.fft.irfft(spectrum, n)

    t = np.arange(n) / RATE
    hum = sum(np.sin(2 * np.pi * 50 * k * t + rng.uniform(0, 6)) / k for k in (1, 2, 3, 5, 7))
    machine = coloured(1.0) * (1 + 0.8 * np.sin(2 * np.pi * 3.1 * t))
    clicks = np.zeros(n)
    for at in rng.integers(0, n - 800, int(4 * seconds)):
        clicks[at : at + 800] += np.exp(-np.arange(800) / 90)
    babble = np.zeros(n)
    words = list(LEXICON)
    crowd = [Speaker.draw(rng) for _ in range(8)]
    for _ in range(40):  # reversed words: voices without any keyword
        voice = say(words[rng.integers(len(words))], crowd[rng.integers(8)], rng)[::-1]
        for at in rng.integers(0, n - len(voice), int(seconds / 6)):
            babble[at : at + len(voice)] += voice
    sounds = [coloured(0.0), coloured(1.0), hum + 0.02 * rng.normal(size=n), machine, babble]
    sounds.append(clicks * rng.normal(size=n) + 0.01 * coloured(0.0))
    return [torch.from_numpy(0.1 * s / s.std()).float().clamp(-1, 1) for s in sounds]


def synthetic_corpus(
    speakers: int = 60, takes: int = 1, *, keywords: tuple[str, ...] = KEYWORDS, seed: int = 0
) -> Corpus:
    """Every speaker says every word of the lexicon `takes` times.

    The speakers are split 80:10:10 into training, validation and testing.
    """
    require(speakers >= 10, "speakers", speakers, "at least 10, for an 80:10:10 split")
    rng = np.random.default_rng(seed)
    clips, said = [], []
    for s in range(speakers):
        speaker, split = Speaker.draw(rng), SPLITS[max(0, s % 10 - 7)]
        for word in (word for word in LEXICON for _ in range(takes)):
            audio = say(word, speaker, rng)[:RATE]
            clip = np.zeros(RATE, dtype=np.float32)
            at = rng.integers(0, RATE - len(audio) + 1)
            clip[at : at + len(audio)] = audio
            clips.append(torch.from_numpy(clip))
            said.append((word, f"voice{s:03d}", split))
    words, names, splits = map(np.array, zip(*said, strict=True))
    return Corpus(as_int16(clips), words, names, splits, background_noises(rng), keywords)
