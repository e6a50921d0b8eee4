"""A Ray cluster of two nodes on this machine, each with one processor, the second with a GPU.

Prints its address when both nodes work, or `cannot start: …`; then obeys lines: `kill` ends the
second node without a warning. It shuts down at the end of its input.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
# A node is given up two seconds after its death (Ray waits 15). Its workers do not stand back.
SYSTEM = {"health_check_period_ms": 500, "health_check_failure_threshold": 4, "worker_niceness": 0}


def main() -> None:
    cluster = Cluster()
    try:
        try:
            cluster.add_node(include_dashboard=False, _system_config=SYSTEM, **NODE)
            second = cluster.add_node(num_gpus=1, **NODE)
        except (TypeError, AttributeError):  # mistakes of this file are no reason to skip
            raise
        except Exception as error:
            print("cannot start:", type(error).__name__, *str(error).splitlines()[:1], flush=True)
            return
        print(cluster.address, flush=True)
        for line in sys.stdin:
            if line == "kill\n":
                cluster.remove_node(second, allow_graceful=False)
                print("killed", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
