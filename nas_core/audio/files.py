"""Reading recordings, and the three functions of torchaudio that the book uses."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

# Mixtures and float recordings may exceed 1; beyond this the numbers are of another unit. (Noise
# full of clicks, scaled to a common level, reaches 20.)
LOUDEST = 100.0


class AudioFileError(ValueError):
    """A recording that cannot be used; the message names the file."""


def torchaudio_functional() -> ModuleType:
    """`torchaudio.functional`: `resample`, `melscale_fbanks`, `create_dct`; nothing else is used.

    It is imported here only, when needed, and refuses a version of torch that is not its own.
    """
    try:
        import torchaudio.functional
    except (ImportError, OSError, RuntimeError) as error:
        pair = f"torchaudio cannot be imported beside torch {torch.__version__}"
        hint = "`nas-workbook doctor` names the versions that belong together."
        raise ImportError(f"{pair}: {error}. {hint}") from error
    return torchaudio.functional


def check_audio(audio: Tensor) -> None:
    """Refuse what is not float32 mono in about −1…1, finite everywhere."""
    if audio.dim() != 1 or audio.dtype != torch.float32:
        found = f"{audio.dtype} {list(audio.shape)}"
        raise ValueError(f"audio is {found}; read_audio gives float32 [samples] (mono)")
    peak = audio.abs().amax().item() if len(audio) else 0.0
    if not peak <= LOUDEST:  # NaN is not
        for first in (~audio.isfinite()).nonzero():
            where, value = f"sample {first.item()} of {len(audio)}", audio[first].item()
            raise ValueError(f"{where} is {value}; replace it first, e.g. by torch.nan_to_num")
        raise ValueError(f"the loudest sample is {peak:.0f}; divide int16 by 32768 to get −1…1")


def read_audio(path: str | Path, rate: int = 16_000) -> Tensor:
    """Samples float32 `[n]` in −1…1 of a wav, flac or ogg file, down-mixed and resampled.

    Raises FileNotFoundError, or AudioFileError for a file without usable samples.
    """
    import soundfile  # torchaudio's own reading needs the separate torchcodec package

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
    try:
        check_audio(audio)
    except ValueError as error:
        raise AudioFileError(f"{path}: {error}") from error
    return audio if found == rate else torchaudio_functional().resample(audio, found, rate)


def read_all(
    paths: Iterable[str | Path], rate: int = 16_000
) -> tuple[list[Tensor], list[Path], list[str]]:
    """Audio and paths of the readable files, in order, and one message per skipped file.

    One warning counts the unusable files, which are left out.
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
        count = f"{len(skipped)} of {len(audio) + len(skipped)}"
        warnings.warn(f"skipped {count} recordings: {shown}", stacklevel=2)
    return audio, kept, skipped
