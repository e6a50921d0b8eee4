"""The sweep on a real Ray cluster of several nodes on this machine."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from nas_core.search.sweep import ClusterUnreachable, grid, sweep
from tests.search import sweep_trials as trials

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # a busy machine is slow
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'nas-workbook[ray]'")

NODE = {"object_store_memory": 80_000_000}

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


@pytest.fixture(scope="module")
def cluster():
    """A head without processors and two nodes with one each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **NODE}
    )
    nodes = [cluster.add_node(num_cpus=1, **NODE) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def test_unreachable_cluster_names_the_commands(monkeypatch):
    with socket.socket() as s:  # a port that nobody listens on
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ClusterUnreachable, match="ray start --head"):
        sweep(trials.square, grid(x=[1]), engine="ray")


def test_cluster_with_a_node_killed_loses_nothing(cluster, tmp_path, monkeypatch):
    cluster, nodes = cluster
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    configs = grid(x=range(40), folder=[str(tmp_path)], seconds=[0.7])
    killed = threading.Event()

    def kill() -> None:
        for _ in range(900):
            time.sleep(0.1)
            processes = {p for f in tmp_path.glob("*.calls") for p in f.read_text().split()}
            if len(processes) >= 2:  # both nodes work: now one of them is lost
                break
        cluster.remove_node(nodes[0], allow_graceful=False)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    store = tmp_path / "s.sqlite"
    table = sweep(trials.slow, configs, engine="ray", store=store, retries=3)
    thread.join()
    assert killed.is_set()
    assert table.status.tolist() == ["done"] * 40
    assert table.square.tolist() == [x * x for x in range(40)]
    assert len(set(table.worker)) >= 2  # more than one node worked
    assert table.attempts.max() >= 2  # and what the lost one had in hand was repeated
    before = trials.calls(tmp_path)
    assert set(before) == set(range(40))
    # What the store has is not run again, whatever the engine.
    again = sweep(trials.slow, configs, engine="local", workers=1, store=store)
    assert trials.calls(tmp_path) == before and set(again.status) == {"done"}


def test_failures_on_the_cluster_lose_no_other_trial(cluster, tmp_path):
    configs = grid(x=range(4), folder=[str(tmp_path)])
    address = cluster[0].address
    table = sweep(trials.always_fails_on_two, configs, engine="ray", address=address, retries=1)
    assert table.status.tolist() == ["done", "done", "failed", "done"]
    assert trials.calls(tmp_path)[2] == 2
    assert "two is not to my liking" in table.error[2]


def test_gpu_fractions_reach_the_scheduler(cluster):
    """Trials that need a GPU wait for a node that has one; two halves share it."""
    node = cluster[0].add_node(num_cpus=2, num_gpus=1, **NODE)

    def which(x: int) -> dict:
        import ray

        return {"gpu": ray.get_gpu_ids(), "node": ray.get_runtime_context().get_node_id()}

    table = sweep(which, grid(x=[0, 1]), engine="ray", address=cluster[0].address, gpus=0.5)
    assert table.status.tolist() == ["done", "done"]
    assert table.gpu.tolist() == [[0], [0]] or table.gpu.tolist() == [["0"], ["0"]]
    assert set(table.node) == {node.node_id}
