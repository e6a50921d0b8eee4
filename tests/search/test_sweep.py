"""The sweep on local processes: nothing finished is lost, whatever happens to the rest."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from nas_core.search.sweep import (
    BadConfig,
    DuplicateConfigs,
    SweepError,
    UnknownEngine,
    WrongStore,
    grid,
    sweep,
)
from tests.search import sweep_trials as trials


def test_grid_is_the_product_in_order():
    assert grid(a=[1, 2], b="xy") == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_table_has_one_row_per_configuration_in_order(workers):
    table = sweep(trials.square, grid(x=[5, 1, 3, 2]), workers=workers)
    assert table.x.tolist() == [5, 1, 3, 2]
    assert table.square.tolist() == [25, 1, 9, 4]
    assert set(table.status) == {"done"} and set(table.attempts) == {1}
    here = {int(w.split(":")[1]) == os.getpid() for w in table.worker}
    assert here == {workers == 0}


def test_functions_of_a_notebook_can_be_sent():
    factor = 7
    table = sweep(lambda x: {"y": factor * x}, grid(x=[1, 2]), workers=1)
    assert table.y.tolist() == [7, 14]


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_are_retried_and_lose_no_other_trial(tmp_path, workers):
    configs = grid(x=range(5), folder=[str(tmp_path)])
    table = sweep(trials.always_fails_on_two, configs, workers=workers, retries=2)
    assert table.status.tolist() == ["done", "done", "failed", "done", "done"]
    assert trials.calls(tmp_path) == {0: 1, 1: 1, 2: 3, 3: 1, 4: 1}
    assert "RuntimeError: two is not to my liking (sweep_trials.py:" in table.error[2]
    assert table.attempts[2] == 3


def test_killed_worker_is_replaced_and_its_trial_repeated(tmp_path):
    configs = grid(x=range(6), folder=[str(tmp_path)])
    table = sweep(trials.dies_once, configs, workers=2, retries=1)
    assert table.square.tolist() == [0, 1, 4, 9, 16, 25]
    assert table.attempts.tolist() == [1, 1, 1, 2, 1, 1]
    assert set(trials.calls(tmp_path).values()) == {1}


def test_killed_worker_without_retries_is_a_failed_trial(tmp_path):
    configs = grid(x=range(5), folder=[str(tmp_path)])
    table = sweep(trials.dies_once, configs, workers=1, retries=0)
    assert table.status.tolist() == ["done", "done", "done", "failed", "done"]
    assert table.error[3] == "WorkerLost: its process ended with SIGKILL"


def test_store_is_resumed_and_failed_trials_are_tried_again(tmp_path):
    store, folder = tmp_path / "s.sqlite", [str(tmp_path)]
    first = sweep(
        trials.dies_once, grid(x=range(4), folder=folder), store=store, workers=1, retries=0
    )
    assert (first.status == "failed").sum() == 1
    second = sweep(trials.dies_once, grid(x=range(6), folder=folder), store=store, workers=1)
    assert set(second.status) == {"done"}
    assert trials.calls(tmp_path) == dict.fromkeys(range(6), 1)


def test_key_is_the_configuration_not_the_order_of_its_names(tmp_path):
    store = tmp_path / "s.sqlite"
    sweep(trials.square, [{"x": 2, "folder": str(tmp_path)}], store=store, workers=0)
    sweep(trials.square, [{"folder": str(tmp_path), "x": 2}], store=store, workers=0)
    assert trials.calls(tmp_path) == {2: 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_keeps_what_is_finished(tmp_path, workers):
    configs = grid(x=range(40), folder=[str(tmp_path)], pause=[0.1])
    store = tmp_path / "s.sqlite"

    def interrupt() -> None:
        for _ in range(300):  # after the second trial has ended
            time.sleep(0.1)
            if len(trials.calls(tmp_path)) >= 2:
                break
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    table = sweep(trials.slow, configs, store=store, workers=workers)
    thread.join()
    assert table.attrs["interrupted"]
    done = table.status == "done"
    assert 1 <= done.sum() < 40 and set(table.status[~done]) == {"pending"}
    again = sweep(trials.slow, configs[:4], store=store, workers=workers)
    assert set(again.status) == {"done"} and not again.attrs["interrupted"]
    kept = [x for x in range(4) if done[x]]
    assert kept and all(trials.calls(tmp_path)[x] == 1 for x in kept)


def test_killed_parent_leaves_a_store_that_goes_on(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        from tests.search.sweep_trials import slow
        from nas_core.search.sweep import grid, sweep
        if __name__ == "__main__":
            sweep(slow, grid(x=range(50), folder=[{str(tmp_path)!r}], pause=[0.05]),
                  store={str(tmp_path / "s.sqlite")!r}, workers=0)
        """)
    )
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": "."})
    for _ in range(600):
        time.sleep(0.1)
        if len(trials.calls(tmp_path)) >= 5:
            break
    process.kill()
    process.wait()
    with sqlite3.connect(tmp_path / "s.sqlite") as db:
        (done,) = db.execute("SELECT count(*) FROM trials WHERE status = 'done'").fetchone()
    assert done >= 3
    configs = grid(x=range(12), folder=[str(tmp_path)], pause=[0.05])
    table = sweep(trials.slow, configs, store=tmp_path / "s.sqlite", workers=0)
    assert set(table.status) == {"done"}
    repeated = sum(n > 1 for n in trials.calls(tmp_path).values())
    assert repeated <= 1  # the one that was in flight


def test_numpy_and_torch_results_become_plain_numbers():
    def fn(x):
        import numpy as np
        import torch

        return {"a": np.float64(x), "b": torch.tensor([x, 2 * x]), "c": np.arange(2)}

    table = sweep(fn, grid(x=[3]), workers=0)
    assert table.a[0] == 3.0 and table.b[0] == [3, 6] and table.c[0] == [0, 1]


def test_results_that_cannot_be_kept_are_failures_that_say_so():
    table = sweep(trials.returns_a_number, grid(x=[1]), workers=0)
    assert table.status[0] == "failed" and "give a dict" in table.error[0]
    table = sweep(lambda x: {"y": {1, 2}}, grid(x=[1]), workers=0)
    assert "set is not JSON-able" in table.error[0]
    table = sweep(lambda x: {"status": "fine"}, grid(x=[1]), workers=0)
    assert "fn returned ['status'], columns of the sweep's own" in table.error[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_trial_that_leaves_the_program_is_a_failed_trial(workers):
    def leaves(x):
        raise SystemExit(3) if x == 1 else ValueError("")

    table = sweep(leaves, grid(x=[0, 1]), workers=workers, retries=0)
    assert table.error[0].startswith("ValueError:") and table.error[1].startswith("SystemExit: 3")


def test_wrong_input_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UnknownEngine, match="'slurm'; there are 'local', 'ray'"):
        sweep(trials.square, [], engine="slurm")
    with pytest.raises(DuplicateConfigs, match="configurations 0 and 2"):
        sweep(trials.square, [{"x": 1}, {"x": 2}, {"x": 1}])
    with pytest.raises(BadConfig, match=r"configuration 1: x=.*object.* is not JSON-able"):
        sweep(trials.square, [{"x": 1}, {"x": object()}])
    with pytest.raises(BadConfig, match="JSON-able"):
        sweep(trials.square, [{"x": float("nan")}])
    with pytest.raises(BadConfig, match="dict with string keys"):
        sweep(trials.square, [{1: 1}])
    with pytest.raises(BadConfig, match=r"names \['seconds'\], columns of the sweep's own"):
        sweep(trials.square, [{"x": 1, "seconds": 2}])
    with pytest.raises(SweepError, match="negative"):
        sweep(trials.square, [{"x": 1}], retries=-1)
    with pytest.raises(SweepError, match="only 'ray' deals out GPUs"):
        sweep(trials.square, [{"x": 1}], gpus=0.5)
    with pytest.raises(SweepError, match="give a function"):
        sweep("square", [{"x": 1}])  # type: ignore[arg-type]
    lock = threading.Lock()
    with pytest.raises(SweepError, match="cannot be sent to another process"):
        sweep(lambda x: {"y": lock}, [{"x": 1}])


def test_a_store_belongs_to_one_function(tmp_path):
    store = tmp_path / "s.sqlite"
    sweep(trials.square, grid(x=[1]), store=store, workers=0)
    with pytest.raises(WrongStore, match="holds trials of tests.search.sweep_trials.square"):
        sweep(trials.returns_a_number, grid(x=[1]), store=store)
    (tmp_path / "text").write_text("not a database, but long enough to be looked at" * 20)
    for path in (tmp_path / "text", tmp_path / "no folder" / "s.sqlite"):
        with pytest.raises(WrongStore, match="is not a sweep store"):
            sweep(trials.square, grid(x=[1]), store=path)
    foreign = tmp_path / "study.db"  # of another program, which must find it as it left it
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE trials (number INT)")
        db.execute("CREATE TABLE studies (name TEXT)")
    before = foreign.read_bytes()
    with pytest.raises(WrongStore, match=r"of another program \(tables studies\), not of"):
        sweep(trials.square, grid(x=[1]), store=foreign)
    assert foreign.read_bytes() == before


def test_empty_sweep_is_an_empty_table():
    assert len(sweep(trials.square, [])) == 0
