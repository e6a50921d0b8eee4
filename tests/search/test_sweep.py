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
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nas_core.search.sweeps import (
    SweepError,
    _pickled,
    code_version,
    grid,
    map_trials,
    stored,
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
    assert table.error[3] == "WorkerLost: its process ended with SIGKILL(-9)"


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
    """Two trials end; the others wait for longer than any machine is slow, until Ctrl-C."""
    folder = [str(tmp_path)]
    quick = grid(x=range(2), folder=folder, pause=[0.1])
    configs = [*quick, *grid(x=range(2, 6), folder=folder, pause=[10_000])]
    store = tmp_path / "s.sqlite"

    def finished() -> int:
        try:
            return len(stored(store))
        except sqlite3.OperationalError:  # not there yet
            return 0

    def interrupt() -> None:
        while finished() < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    table = sweep(trials.slow, configs, store=store, workers=workers)
    thread.join()
    assert table.attrs["interrupted"]
    done = table.status == "done"
    assert done.tolist() == [True] * 2 + [False] * 4
    assert set(table.status[~done]) == {"pending"}
    again = sweep(trials.slow, quick, store=store, workers=workers)
    assert set(again.status) == {"done"} and not again.attrs["interrupted"]
    assert trials.calls(tmp_path) == {0: 1, 1: 1}


def test_killed_parent_leaves_a_store_that_goes_on(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        from tests.search.sweep_trials import slow
        from nas_core.search.sweeps import grid, sweep
        if __name__ == "__main__":
            sweep(slow, grid(x=range(50), folder=[{str(tmp_path)!r}], pause=[0.05]),
                  store={str(tmp_path / "s.sqlite")!r}, workers=0)
        """)
    )
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": "."})
    while process.poll() is None and len(trials.calls(tmp_path)) < 5:
        time.sleep(0.1)
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
    assert "Object of type set is not JSON serializable" in table.error[0]
    table = sweep(lambda x: {"status": "fine"}, grid(x=[1]), workers=0)
    assert "fn returned ['status'], columns of the sweep's own" in table.error[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_trial_that_leaves_the_program_is_a_failed_trial(workers):
    def leaves(x):
        raise SystemExit(3) if x == 1 else ValueError("")

    table = sweep(leaves, grid(x=[0, 1]), workers=workers, retries=0)
    assert table.error[0].startswith("ValueError:") and table.error[1].startswith("SystemExit: 3")


def test_wrong_input_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(SweepError, match="'slurm'; there are 'local', 'ray'"):
        sweep(trials.square, [], engine="slurm")
    with pytest.raises(SweepError, match="configurations 0 and 2"):
        sweep(trials.square, [{"x": 1}, {"x": 2}, {"x": 1}])
    with pytest.raises(SweepError, match=r"configuration 1 is .*object.*, which is not JSON-able"):
        sweep(trials.square, [{"x": 1}, {"x": object()}])
    with pytest.raises(SweepError, match="JSON-able"):
        sweep(trials.square, [{"x": float("nan")}])
    with pytest.raises(SweepError, match="dict with string keys"):
        sweep(trials.square, [{1: 1}])
    with pytest.raises(SweepError, match=r"names \['seconds'\], columns of the sweep's own"):
        sweep(trials.square, [{"x": 1, "seconds": 2}])
    with pytest.raises(SweepError, match="negative"):
        sweep(trials.square, [{"x": 1}], retries=-1)
    with pytest.raises(SweepError, match="only 'ray' assigns GPUs"):
        sweep(trials.square, [{"x": 1}], gpus=0.5)
    with pytest.raises(SweepError, match="give a function"):
        sweep("square", [{"x": 1}])  # type: ignore[arg-type]
    lock = threading.Lock()
    with pytest.raises(SweepError, match="cannot be sent to another process"):
        sweep(lambda x: {"y": lock}, [{"x": 1}])


def test_results_do_not_replace_configurations():
    """A trial that returns what it was called with under another value would be shown wrongly."""
    table = sweep(lambda lr: {"lr": lr / 10, "y": 1}, grid(lr=[0.1]), workers=0, retries=0)
    assert (
        table.status[0] == "failed"
        and "returned lr=0.01, but was called with lr=0.1" in table.error[0]
    )
    assert table.lr.tolist() == [0.1]
    table = sweep(lambda lr: {"lr": lr, "y": 1}, grid(lr=[0.1]), workers=0)
    assert table.status[0] == "done"


def test_numbers_of_numpy_are_values_of_a_grid(tmp_path):
    store = tmp_path / "s.sqlite"
    axes = {"n": np.arange(2), "lr": [np.float32(0.5)], "on": [np.bool_(True)], "at": [(1, 2)]}
    table = sweep(trials.kinds, grid(**axes), store=store, workers=0)
    assert table.kinds.tolist() == ["int float bool tuple"] * 2
    again = sweep(trials.kinds, grid(n=[0, 1], lr=[0.5], on=[True], at=[(1, 2)]), store=store)
    assert again.seconds.tolist() == table.seconds.tolist()  # nothing was run again
    with pytest.raises(SweepError, match="configurations 0 and 1 are both"):
        sweep(trials.kinds, grid(n=[1, np.int64(1)], lr=[1], on=[1], at=[1]))


def scaled(x, by=1.0):
    return {"y": x * by}


class Scale:
    def __init__(self, by):
        self.by = by

    def method(self, x):
        return {"y": x * self.by}

    def __call__(self, x):
        return {"y": x * self.by}


PAIRS = {
    "partials": [partial(scaled, by=b) for b in (1, 1000)],
    "lambdas": [lambda x: {"y": x}, lambda x: {"y": x * 1000}],
    "closures": [(lambda by: lambda x: {"y": x * by})(b) for b in (1, 1000)],
    "methods": [Scale(b).method for b in (1, 1000)],
    "objects": [Scale(b) for b in (1, 1000)],
}


@pytest.mark.parametrize("kind", PAIRS)
def test_functions_of_one_name_do_not_share_a_store(tmp_path, kind):
    """The second would be shown the rows of the first."""
    first, second = PAIRS[kind]
    store = tmp_path / "s.sqlite"
    assert sweep(first, grid(x=[0.1]), store=store, workers=0).y[0] == pytest.approx(0.1)
    with pytest.raises(
        SweepError, match=r"holds trials of .* \(code \w+\), not of .* \(code \w+\)"
    ):
        sweep(second, grid(x=[0.1]), store=store, workers=0)
    assert sweep(first, grid(x=[0.1]), store=store, workers=0).y[0] == pytest.approx(0.1)


SOURCE = """
LR = 0.1
def helper(x):
    return x * LR
def trial(x):
    '''Text.'''
    return {"y": helper(x)}
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Text", "Other words", True),
        ("    return x * LR", "    # a comment\n    return x * LR", True),
        ("LR = 0.1", "LR = 0.2", False),
        ("x * LR", "x + LR", False),
        ("helper(x)}", "helper(-x)}", False),
    ],
)
def test_code_version_follows_what_a_function_does(old, new, same):
    versions = []
    for text in (SOURCE, SOURCE.replace(old, new)):
        names = {"__name__": "study"}
        exec(text, names)
        versions.append(code_version(names["trial"]))
    assert (versions[0] == versions[1]) == same


def test_code_version_is_the_same_in_another_process():
    ask = "from tests.search.test_sweep import Scale, scaled; from functools import partial; "
    ask += "from nas_core.search.sweeps import code_version as v; "
    ask += "print(v(Scale(3).method), v(partial(scaled, by=2)))"
    env = {**os.environ, "PYTHONPATH": ".", "PYTHONHASHSEED": "7"}
    said = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True)
    here = [code_version(Scale(3).method), code_version(partial(scaled, by=2))]
    assert said.stdout.split() == here


def test_an_edited_function_continues_its_store_when_told_so(tmp_path):
    store = tmp_path / "s.sqlite"
    first, second = PAIRS["lambdas"]
    with sqlite3.connect(store) as db:  # a store that was made before code had versions
        db.execute("CREATE TABLE sweep (function TEXT)")
        db.execute(f"INSERT INTO sweep VALUES ('{__name__}.<lambda>')")
    with pytest.raises(SweepError, match="pass the `version`"):
        sweep(first, grid(x=[1]), store=store, workers=0)
    assert sweep(first, grid(x=[1]), store=store, workers=0, version="").y[0] == 1
    assert sweep(second, grid(x=[1, 2]), store=store, workers=0, version="").y.tolist() == [1, 2000]
    assert stored(store).to_dict("records") == [{"y": 1, "x": 1}, {"y": 2000, "x": 2}]


SCRIPT = """
import os, sys, time
from pathlib import Path
from nas_core.search.sweeps import grid, sweep
with open("runs", "a") as f:
    f.write("x")
def trial(x):
    Path(f"{os.getpid()}.pid").touch()
    time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    return {"y": x}
sweep(trial, grid(x=[1, 2]), store="s.sqlite", workers=2)
"""


def run_script(folder, *arguments):
    (folder / "main.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.Popen([sys.executable, "main.py", *arguments], cwd=folder, env=env)


def test_a_script_without_main_guard_runs_once(tmp_path):
    assert run_script(tmp_path, "0").wait(timeout=1500) == 0
    assert (tmp_path / "runs").read_text() == "x"
    assert stored(tmp_path / "s.sqlite").y.tolist() == [1, 2]


def test_workers_end_with_a_killed_parent(tmp_path):
    """Else a trial goes on while the same call, started again, repeats it."""
    process = run_script(tmp_path)
    while len(pids := [int(f.stem) for f in tmp_path.glob("*.pid")]) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(alive, pids)), seconds=1500)  # the trials sleep for hours


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_map_keeps_order_and_the_errors_it_is_told_to():
    def half(x):
        if x == 1:
            raise FloatingPointError("the loss became nan")
        return x / 2, os.getpid()

    for processes in (1, 2):
        out = map_trials(half, [0, 1, 2], processes, keep=FloatingPointError)
        assert [out[0][0], out[2][0]] == [0, 1] and isinstance(out[1], FloatingPointError)
        assert (out[0][1] == os.getpid()) == (processes == 1)
        with pytest.raises(FloatingPointError, match="became nan"):
            map_trials(half, [0, 1, 2], processes)


def test_mapped_processes_compute_on_one_thread():
    def threads(_):
        import torch

        return torch.get_num_threads()

    assert map_trials(threads, [0, 1], 2) == [1, 1]


def test_a_store_belongs_to_one_function(tmp_path):
    store = tmp_path / "s.sqlite"
    sweep(trials.square, grid(x=[1]), store=store, workers=0)
    with pytest.raises(SweepError, match="holds trials of tests.search.sweep_trials.square"):
        sweep(trials.returns_a_number, grid(x=[1]), store=store)
    (tmp_path / "text").write_text("not a database, but long enough to be looked at" * 20)
    sweep(trials.square, grid(x=[1]), store=tmp_path / "new folder" / "s.sqlite", workers=0)
    assert stored(tmp_path / "new folder" / "s.sqlite").square.tolist() == [1]
    for path in (tmp_path / "text", tmp_path / "text" / "s.sqlite"):
        with pytest.raises(SweepError, match="is not a sweep store"):
            sweep(trials.square, grid(x=[1]), store=path)
    foreign = tmp_path / "study.db"  # of another program, which must find it as it left it
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE trials (number INT)")
        db.execute("CREATE TABLE studies (name TEXT)")
    before = foreign.read_bytes()
    with pytest.raises(SweepError, match=r"of another program \(tables studies\), not of"):
        sweep(trials.square, grid(x=[1]), store=foreign)
    assert foreign.read_bytes() == before


def test_empty_sweep_is_an_empty_table():
    assert len(sweep(trials.square, [])) == 0


def test_a_function_that_names_torch_and_classes_can_be_sent():
    """cloudpickle takes `torch` and `.classes` for the module torch.classes, which is none."""
    import cloudpickle
    import torch

    class Data:
        classes, ops = ("a", "b"), 3

    def trial(n):
        return float(torch.ones(len(Data.classes)).sum()) + Data.ops + n

    assert cloudpickle.loads(_pickled(trial))(1) == 6.0
