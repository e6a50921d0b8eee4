"""Real sets that chapters read in their own way, as clips or as tasks: how their files are fetched.

`load` does not know them; `continual.Real` and `audio.load_speech_commands` do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nas_core.data.dataset import DataNotFound


@dataclass(frozen=True)
class FileSet:
    """A set by its files.

    Attributes:
        marks: files or folders below the root that are there when the set is.
        chapters: who reads it.
        download: puts the files below a root, by the loader of torchvision or torchaudio.
    """

    marks: tuple[str, ...]
    chapters: str
    download: Callable[[Path], None]

    def missing(self, root: Path) -> str | None:
        """The first of `marks` that is not below `root`, or None."""
        return next((mark for mark in self.marks if not (root / mark).exists()), None)


def _svhn(root: Path) -> None:
    from torchvision.datasets import SVHN

    for split in ("train", "test"):
        SVHN(str(root), split=split, download=True)


def _dtd(root: Path) -> None:
    from torchvision.datasets import DTD

    DTD(str(root), download=True)


def _speech_commands(version: str) -> FileSet:
    def download(root: Path) -> None:
        from torchaudio.datasets import SPEECHCOMMANDS

        SPEECHCOMMANDS(root, url=version, download=True)

    return FileSet((f"SpeechCommands/{version}/_background_noise_",), "06 and 07", download)


FILES: dict[str, FileSet] = {
    "svhn": FileSet(("train_32x32.mat", "test_32x32.mat"), "08 to 10", _svhn),
    "dtd": FileSet(("dtd/dtd/images", "dtd/dtd/labels"), "08 to 10", _dtd),
    "speech_commands_v0.01": _speech_commands("speech_commands_v0.01"),
    "speech_commands_v0.02": _speech_commands("speech_commands_v0.02"),
}


def fetch_files(name: str, root: Path) -> None:
    """Download one of `FILES` below `root`; nothing is done where it is there already.

    Raises:
        DataNotFound: when files are missing even then.
    """
    if FILES[name].missing(root):
        root.mkdir(parents=True, exist_ok=True)
        FILES[name].download(root)
        if missing := FILES[name].missing(root):
            raise DataNotFound(
                f"{root / missing} is missing after the download: remove what is left of an "
                f"interrupted one in {root} and run nas-workbook data fetch {name} again"
            )
