"""Checkpoint files are whole or refused; random generators come back exactly."""

import os
import random

import numpy as np
import pytest
import torch

from nas_core.training import (
    CorruptCheckpoint,
    load_checkpoint,
    rng_state,
    save_atomic,
    seed_everything,
    set_rng_state,
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
