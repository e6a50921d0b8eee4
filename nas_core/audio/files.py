"""Reading recordings: any format that libsndfile knows, as float32 mono at one rate."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from torchaudio.functional import resample

# torchaudio's own reading needs the separate torchcodec package; soundfile brings its library.


class AudioFileError(ValueError):
    """A recording that cannot be used; the message names the file."""


def read_audio(path: str | Path, rate: int = 16_000) -> Tensor:
    """Samples float32 `[n]` in −1…1 of a wav, flac or ogg file, down-mixed and resampled.

    Raises:
        FileNotFoundError: naming the missing file.
        AudioFileError: for a broken or empty file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recording at {path}")
    try:
        samples, found = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioFileError(f"{path} cannot be read as audio: {error}") from error
    audio = torch.from_numpy(samples).mean(1)
    if not len(audio):
        raise AudioFileError(f"{path} holds no samples")
    if not audio.isfinite().all():
        raise AudioFileError(f"{path} holds samples that are not finite")
    return audio if found == rate else resample(audio, found, rate)


def read_all(
    paths: Iterable[str | Path], rate: int = 16_000
) -> tuple[list[Tensor], list[Path], list[str]]:
    """Read many recordings, leaving out the unusable ones with one warning that counts them.

    Returns:
        audio and paths of the readable files, in order, and one message per skipped file.
    """
    audio, kept, skipped = [], [], []
    for path in map(Path, paths):
        try:
            audio.append(read_audio(path, rate))
            kept.append(path)
        except (AudioFileError, FileNotFoundError) as error:  # a link may lead nowhere
            skipped.append(str(error))
    if skipped:
        shown = "; ".join(skipped[:5]) + ("; …" if len(skipped) > 5 else "")
        warnings.warn(
            f"skipped {len(skipped)} of {len(audio) + len(skipped)} recordings: {shown}",
            stacklevel=2,
        )
    return audio, kept, skipped


def to_length(audio: Tensor, samples: int) -> Tensor:
    """Cut or zero-pad `[n]` at the end to `samples`."""
    return torch.nn.functional.pad(audio[:samples], (0, max(0, samples - len(audio))))
