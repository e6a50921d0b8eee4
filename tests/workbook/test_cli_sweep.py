"""`nas-workbook sweep`: a sweep of chapter 03 with tiny settings, continued, and wrong input."""

from __future__ import annotations

import pandas as pd
import pytest

from nas_core.workbook.cli import main
from nas_core.workbook.sweep import axis, report

TINY = ["epochs=2", "warmup_epochs=1", "blocks=2", "train_limit=96", "val_limit=64", "lam=1,20"]


def test_sweep_of_chapter_three(tmp_path, capsys):
    command = ["sweep", "03", "--grid", "budget=0.5", *TINY, "--out", str(tmp_path)]
    assert main([*command, "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 trials done" in said and "Pareto front" in said
    (picture,), (file,) = tmp_path.glob("03-smoke-*.png"), tmp_path.glob("03-smoke-*.csv")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    table = pd.read_csv(file)
    assert table.lam.tolist() == [1, 20] and set(table.status) == {"done"}
    assert table.val_accuracy.between(0, 1).all() and (table.macs > 0).all()
    # The same command with one more seed runs the new trials only.
    assert main([*command, "--workers", "0", "--seeds", "2"]) == 0
    again = pd.read_csv(file)
    assert len(again) == 4
    old = again[again.seed == 0]
    assert old.seconds.tolist() == table.seconds.tolist()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["00"], "has no trial to sweep; there are 01, 03"),
        (["03", "--grid", "colour=red"], "cannot vary ['colour']"),
        (["03", "--grid", "lam"], "is no NAME=V1,V2"),
        (["03", "--grid", "lam=1", "lam=2"], "names one thing twice: lam=1 lam=2"),
        (["03", "--seeds", "0"], "at least 1"),
        (["01", "--engine", "ray", "--gpus", "0.5"], "computes on CPUs; drop --gpus"),
        (["03", "--gpus", "0.5"], "only 'ray' assigns GPUs"),
        (["03", "--engine", "slurm"], "there are 'local', 'ray'"),
        (["03", "--grid", "lam=1,1"], "are both"),
    ],
)
def test_wrong_input(arguments, words, capsys, tmp_path):
    assert main(["sweep", *arguments, "--out", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_failed_trials_are_named_and_make_the_exit_code_one(tmp_path, capsys):
    command = ["sweep", "01", "--grid", "strategy=guessing", "--workers", "0", "--retries", "0"]
    assert main([*command, "--out", str(tmp_path)]) == 1
    assert (
        "failed: ValueError: strategy 'guessing'; there are grid, random" in capsys.readouterr().out
    )


def test_report_keeps_combinations_with_none_and_stars_the_front(tmp_path, capsys):
    rows = [(None, 0, 10, 0.8), (None, 1, 30, 0.8), (5.0, 0, 30, 0.7), (5.0, 1, 30, 0.7)]
    done = pd.DataFrame(rows, columns=["max_logit", "seed", "macs", "val_accuracy"])
    report(done.assign(test_accuracy=0.5), ["max_logit"], tmp_path / "f.png", "title")
    first, second = capsys.readouterr().out.splitlines()[1:3]
    assert first.split() == ["*", "NaN", "20", "0.8", "0.5", "0"]
    assert second.split() == ["5", "30", "0.7", "0.5", "0"]
    assert (tmp_path / "f.png").exists()


def test_axes_of_tuples():
    assert axis("milestones=(3,5),(8,),4") == ("milestones", [(3, 5), (8,), 4])
