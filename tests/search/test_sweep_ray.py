"""The sweep on a real Ray cluster of two nodes on this machine.

Where no cluster can start (no shared memory, closed ports) the tests are skipped, with Ray's own
reason. A cluster that has started must do its work.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from nas_core.search.sweeps import SweepError, grid, sweep
from tests.search import sweep_trials as trials

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
pytest.importorskip("ray", reason="Ray is not installed: pip install 'nas-workbook[ray]'")
pytestmark = pytest.mark.timeout(3600)  # for what never ends, on a machine however slow

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # seconds; a cluster starts in 15, in 30 on a very busy machine of two cores

_connect = socket.socket.connect


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """As everywhere, no connection leaves this machine; but the nodes of a cluster on one machine
    call each other by its own address. An address is its own when a socket can be bound to it."""

    def connect(self, address):
        if self.family != socket.AF_UNIX:
            with socket.socket(self.family, socket.SOCK_DGRAM) as s:
                try:
                    s.bind((address[0], 0))
                except OSError as error:
                    raise AssertionError(f"a test tried to reach {address}") from error
        return _connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


class Cluster:
    """`tests.search.ray_cluster` in a process of its own, which a deadline can end."""

    def __init__(self, errors: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.search.ray_cluster"],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors.open("w"),
        )  # fmt: skip
        self.errors = errors
        try:
            self.address = self.answer(PATIENCE)
            if self.address is None:
                pytest.skip(f"no Ray cluster started here within {PATIENCE} s")
            if self.address.startswith("cannot start"):
                pytest.skip(f"Ray {self.address}")
        except BaseException:
            self.end(patience=0)
            raise

    def answer(self, seconds: float) -> str | None:
        """The next line of the cluster's process; None: it said nothing in time."""
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            if not ready.select(seconds):
                return None
        line = self.process.stdout.readline().decode().strip()
        assert line, f"the cluster's process ended:\n{self.errors.read_text()[-3000:]}"
        return line

    def kill_second_node(self) -> None:
        self.process.stdin.write(b"kill\n")
        self.process.stdin.flush()
        assert self.answer(PATIENCE) == "killed"

    def end(self, patience: float = 20) -> None:
        try:
            self.process.communicate(timeout=patience)  # the end of its input
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster") / "errors.txt")
    yield cluster
    cluster.end()


def test_unreachable_cluster_names_the_commands(monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(SweepError, match=f"{address}.*ray start --head"):
            sweep(trials.square, grid(x=[1]), engine="ray")  # a port that nobody listens on
        s.listen()

        def web_page() -> None:
            connection, _ = s.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")

        page = threading.Thread(target=web_page)
        page.start()
        with pytest.raises(SweepError, match="another kind of server answers"):
            sweep(trials.square, grid(x=[1]), engine="ray")
        page.join()
    with pytest.raises(SweepError, match="Invalid address format: head"):
        sweep(trials.square, grid(x=[1]), engine="ray", address="head")


def test_gpu_fractions_reach_the_scheduler(cluster):
    """Trials that need a GPU go to the node that has one; two halves share it."""

    def which(x: int) -> dict:
        import ray

        return {"gpu": ray.get_gpu_ids(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}

    where = {"engine": "ray", "address": cluster.address}
    table = sweep(which, grid(x=[0, 1]), **where, cpus=0.5, gpus=0.5)
    assert table.status.tolist() == ["done", "done"]
    assert [[int(n) for n in ids] for ids in table.gpu] == [[0], [0]]
    assert table.visible.tolist() == ["0", "0"]
    with pytest.raises(SweepError, match="1 CPUs and 2 GPUs, which none of the 2 nodes has"):
        sweep(which, grid(x=[0]), **where, gpus=2)


def test_failures_on_the_cluster_lose_no_other_trial(cluster, tmp_path):
    configs = grid(x=range(4), folder=[str(tmp_path)])
    where = {"engine": "ray", "address": cluster.address}
    table = sweep(trials.always_fails_on_two, configs, **where, retries=1)
    assert table.status.tolist() == ["done", "done", "failed", "done"]
    assert trials.calls(tmp_path)[2] == 2
    assert "two is not to my liking" in table.error[2]


def test_table_of_chapter_one_is_made_on_the_cluster(cluster, tmp_path):
    """Ctrl-C after the first of its trials; the command then says that it may be repeated."""
    store = tmp_path / "s.sqlite"
    words = [str(ROOT / "benchmarks/cell_table.py"), "--engine", "ray", "--store", str(store)]
    command = subprocess.Popen(
        [sys.executable, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster.address},
    )  # fmt: skip
    done = []
    try:
        while not done and command.poll() is None:
            time.sleep(0.5)
            with contextlib.suppress(sqlite3.OperationalError), sqlite3.connect(store) as db:
                done = db.execute("SELECT result FROM trials WHERE status = 'done'").fetchall()
        command.send_signal(signal.SIGINT)
        errors = command.communicate(timeout=1500)[1]
    finally:
        command.kill()
    assert "interrupted; the same command continues it" in errors
    result = json.loads(done[0][0])
    assert len(result["cells"]) == len(result["right"]["val"]) >= 40


def test_a_node_killed_during_the_sweep_loses_nothing(cluster, tmp_path, monkeypatch):
    """Each node finishes three trials; while the fourth runs on both, one node is killed."""

    def trial(x: int) -> dict:
        import ray

        node = ray.get_runtime_context().get_node_id()
        (tmp_path / f"{x}-{node}").touch()
        while len(list(tmp_path.glob(f"*-{node}"))) > 3 and not (tmp_path / "killed").exists():
            time.sleep(0.05)
        return {"square": x * x, "node": node}

    def kill() -> None:
        started: Counter[str] = Counter()
        while len(started) < 2 or min(started.values()) <= 3:
            time.sleep(0.1)
            started = Counter(f.name.split("-")[1] for f in tmp_path.glob("*-*"))
        cluster.kill_second_node()
        (tmp_path / "killed").touch()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    store, configs = tmp_path / "s.sqlite", grid(x=range(14))
    table = sweep(trial, configs, engine="ray", store=store, retries=3)
    assert (tmp_path / "killed").exists()
    assert table.status.tolist() == ["done"] * 14
    assert table.square.tolist() == [x * x for x in range(14)]
    lost, kept = table.node.value_counts(ascending=True)
    assert lost == 3 and kept == 11
    assert table.attempts.max() >= 2  # what the lost node had in hand was repeated
    # What the store has is not run again, whatever the engine.
    again = sweep(trial, configs, engine="local", workers=0, store=store)
    pd.testing.assert_frame_equal(again, table)
