"""Checkpoint files are whole or refused; random generators come back exactly."""

import os
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from nas_core.training import (
    CorruptCheckpoint,
    fingerprint,
    load_checkpoint,
    rng_state,
    save_atomic,
    seed_everything,
    set_rng_state,
    write_atomic,
)

RECORD = {"a": torch.arange(5000.0), "rows": [{"epoch": 0, "loss": 0.1}], "pair": (1, "two", None)}


def same(left, right):
    return torch.equal(left["a"], right["a"]) and all(left[k] == right[k] for k in ("rows", "pair"))


def test_round_trip_and_no_litter(tmp_path):
    path = tmp_path / "deep" / "run.pt"
    save_atomic(RECORD, path)
    save_atomic(RECORD, path)
    assert same(load_checkpoint(path), RECORD)
    assert os.listdir(path.parent) == ["run.pt"]


@pytest.mark.parametrize("failing", ["serialise", "fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "run.pt"
    save_atomic(RECORD, path)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    owner, name = {
        "serialise": (torch, "save"),
        "fsync": (os, "fsync"),
        "replace": (os, "replace"),
    }[failing]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full_disk)
        with pytest.raises(OSError, match="No space"):
            save_atomic({"a": torch.zeros(1)}, path)
    assert same(load_checkpoint(path), RECORD)
    assert os.listdir(tmp_path) == ["run.pt"]


def test_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone\.pt"):
        load_checkpoint(tmp_path / "gone.pt")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_truncated_files_are_refused_by_name(tmp_path, keep):
    path = tmp_path / "cut.pt"
    save_atomic(RECORD, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(CorruptCheckpoint, match=r"cut\.pt is not a readable checkpoint"):
        load_checkpoint(path)


def test_flipped_bits_in_the_weights_are_noticed(tmp_path):
    path = tmp_path / "rot.pt"
    save_atomic(RECORD, path)
    whole = path.read_bytes()
    start = whole.index(RECORD["a"].numpy().tobytes())
    for offset in np.random.default_rng(0).integers(0, 20_000, 20):
        rotten = bytearray(whole)
        rotten[start + offset] ^= 1
        path.write_bytes(rotten)
        with pytest.raises(CorruptCheckpoint, match="checksum|CRC"):
            load_checkpoint(path)


def test_numbers_of_numpy_come_back_as_pythons(tmp_path):
    record = OrderedDict(
        lr=np.float64(0.1), steps=[np.int64(3), {"on": np.bool_(True)}], name=np.str_("a"),
        size=(np.float32(0.5), 2), shape=torch.Size([1, 2]),
    )  # fmt: skip
    save_atomic(record, tmp_path / "run.pt")
    back = load_checkpoint(tmp_path / "run.pt")
    assert back == {
        "lr": 0.1, "steps": [3, {"on": True}], "name": "a", "size": (0.5, 2), "shape": (1, 2),
    }  # fmt: skip
    assert type(back["lr"]) is float and type(back["steps"][1]["on"]) is bool
    assert type(back) is OrderedDict


class Unknown:
    pass


@pytest.mark.parametrize("value", [np.zeros(2), Path("x"), Unknown(), {1, 2}, range(3)])
def test_what_could_not_be_read_back_is_refused_at_the_save(tmp_path, value):
    path = tmp_path / "run.pt"
    save_atomic(RECORD, path)
    with pytest.raises(TypeError, match=r"record\['config'\]\[1\] is a .*a checkpoint holds"):
        save_atomic({"config": ["fine", value]}, path)
    assert same(load_checkpoint(path), RECORD) and os.listdir(tmp_path) == ["run.pt"]


def test_deletion_is_advised_for_wrong_checksums_only(tmp_path):
    path = tmp_path / "run.pt"
    torch.save({"lr": np.float64(0.1)}, path)  # as it was written before numbers were converted
    with pytest.raises(CorruptCheckpoint, match="its checksums are right") as intact:
        load_checkpoint(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptCheckpoint, match="cut short") as cut:
        load_checkpoint(path)
    assert "delete" not in f"{intact.value} {cut.value}"
    save_atomic(RECORD, path)
    rotten = bytearray(path.read_bytes())
    rotten[rotten.index(RECORD["a"].numpy().tobytes()) + 7] ^= 1
    path.write_bytes(rotten)
    with pytest.raises(CorruptCheckpoint, match="checksum of .* differs.*delete it to start"):
        load_checkpoint(path)


def test_a_full_disk_is_called_by_its_name(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    save_atomic(RECORD, path)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: [\d,]+ bytes.*unchanged.*run\.pt"):
        save_atomic(RECORD, path)


def _python(code: str, **env: str) -> subprocess.CompletedProcess:
    """Runs without PyTorch, so it starts at once."""
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root, **env}, timeout=1500
    )


def test_text_is_utf_8_in_every_locale(tmp_path):
    code = (
        "from nas_core.files import write_atomic;"
        f"write_atomic({str(tmp_path / 'a')!r}, '\\u03b3 \\u2264 \\xbd')"
    )
    assert _python(code, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0").returncode == 0
    assert (tmp_path / "a").read_text(encoding="utf-8") == "γ ≤ ½"


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "a [1].txt"
    code = (
        "import os, signal; from nas_core.files import write_atomic;"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL);"
        f"write_atomic({str(path)!r}, 'half')"
    )
    assert _python(code).returncode == -9
    (left,) = tmp_path.iterdir()
    other = left.with_name(left.name.replace(left.name.split(".")[-3], str(os.getppid())))
    other.write_text("of a process that is running")
    write_atomic(path, "whole")
    assert {file.name for file in tmp_path.iterdir()} == {path.name, other.name}
    assert path.read_text() == "whole"


def test_fingerprints_differ_with_every_part():
    x = torch.arange(6.0)
    parts = [(x,), (x.view(2, 3),), (x.double(),), (x + 1,), (x[:0],), (x, 1), (1, x), ("1",), (1,)]
    assert len({fingerprint(*part) for part in parts}) == len(parts)
    assert fingerprint(x.clone(), "a") == fingerprint(x, "a")
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor(2.0))  # no dimension


def test_no_code_is_run_from_a_file(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"call": os.getcwd}, path)
    with pytest.raises(CorruptCheckpoint, match="not a readable"):
        load_checkpoint(path)


def draw():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()


def test_generators_continue_where_they_were(tmp_path):
    seed_everything(3)
    draw()  # an odd number of normal draws leaves one in NumPy's cache
    save_atomic(rng_state(), tmp_path / "rng.pt")
    expected = [draw() for _ in range(3)]
    seed_everything(99)
    set_rng_state(load_checkpoint(tmp_path / "rng.pt"))
    assert [draw() for _ in range(3)] == expected


def test_seeding_covers_all_generators():
    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first
    seed_everything(6)
    assert all(a != b for a, b in zip(first, draw(), strict=True))
