"""Table 5.4 and the megabytes of the thesis' tables, measured on real learners."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from nas_core.continual import (
    LEARNERS,
    alexnet,
    make_learner,
    mlp,
    resnet,
)
from nas_core.continual.learners.shared_path import Ring
from nas_core.continual.library import tensor_bytes

N = 607_050 * 4  # bytes of the ResNet with a head for 10 classes
TRUNK = N - 650 * 4


@contextmanager
def executed_parameters() -> Iterator[dict[int, torch.Tensor]]:
    """Collect the parameters of all modules that run inside the block (table 5.4, measured)."""
    seen: dict[int, torch.Tensor] = {}

    def note(module: nn.Module, args, output) -> None:
        for p in module.parameters(recurse=False):
            if isinstance(p, nn.Parameter):  # and no stand-in of a functional call
                seen[id(p)] = p

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def inference_bytes(learner, task_id: int) -> int:
    """Bytes of the parameters that predicting one task really uses."""
    x = torch.zeros(2, *learner.backbone.input_shape, device=learner.device)
    with executed_parameters() as seen:
        learner.predict(x, task_id)
    return tensor_bytes(seen.values())


class _Shape:
    """Enough of a task to lay out memory without training."""

    def __init__(self, task: int, way: int, shape):
        self.id, self.way, self.input_shape = task, way, shape


def laid_out(name: str, backbone, tasks: int, way: int = 10, **options):
    """A learner that has gone through `tasks` tasks without training steps."""
    learner = make_learner(name, backbone, **options)
    for t in range(tasks):
        if name == "PNN" or name == "HAT":
            learner.net.add(way)
        elif name.startswith("MNTDP"):
            learner.library.grow([t] * len(backbone), way)
        else:
            path = [t if layer in learner.own else 0 for layer in range(len(backbone))]
            learner.library.grow(path, way)
            if "EWC" in name:
                kept = learner.protected(t)
                if learner.online and learner.fishers:
                    learner.fishers.pop(), learner.anchors.pop()
                learner.fishers.append({n: torch.zeros_like(p) for n, p in kept.items()})
                learner.anchors.append({n: torch.zeros_like(p) for n, p in kept.items()})
            if name == "ER":
                x, y = torch.zeros(way * 20, 3, 32, 32), torch.arange(way).repeat(20)
                learner.buffer.offer(x, y, t, torch.Generator())
        learner.seen += 1
    return learner


def mb(learner, statistics: bool = False) -> float:
    return learner.total_memory(statistics=statistics) / 1e6


def test_exact_megabytes():
    assert laid_out("Independent", resnet(), 6).total_memory() == 6 * N
    assert mb(laid_out("Independent", resnet(), 6)) == pytest.approx(14.57, abs=0.005)
    assert mb(laid_out("Independent", mlp(), 10)) == pytest.approx(71.8, abs=0.05)
    ewc = laid_out("EWC", resnet(), 6, task_heads=False)
    assert ewc.total_memory() == N + 2 * 6 * N and round(mb(ewc), 2) == 31.57
    online = laid_out("Online EWC", resnet(), 6, task_heads=False)
    assert online.total_memory() == 3 * N and round(mb(online), 1) == 7.3
    replay = laid_out("ER", resnet(), 6, task_heads=False, buffer=Ring(15))
    assert replay.total_memory() == N + 6 * 10 * 15 * 3 * 32 * 32 * 4
    assert round(mb(replay), 1) == 13.5


def test_memory_of_shared_trunks():
    assert laid_out("Finetune", resnet(), 6).total_memory() == N
    assert laid_out("New-head freeze", resnet(), 6).total_memory() == TRUNK + 6 * 650 * 4
    assert laid_out("New-leg freeze", resnet(), 6).total_memory() == N + 5 * 1856 * 4
    with_heads = laid_out("EWC", resnet(), 6)
    assert with_heads.total_memory() == TRUNK + 6 * 2600 + 2 * 6 * TRUNK
    assert round(mb(with_heads), 1) == 31.5  # what table 5.9 prints


@pytest.mark.parametrize(("tasks", "printed"), [(5, 36.5), (6, 51.1), (10, 133.8)])
def test_progressive_networks_grow_by_the_law_behind_the_printed_tables(tasks, printed):
    pnn = laid_out("PNN", resnet(), tasks)
    pairs = tasks * (tasks - 1) // 2
    assert pnn.total_memory() == tasks * N + pairs * (N - 1856 * 4)
    assert round(mb(pnn, statistics=True), 1) == printed


def test_progressive_perceptron_of_table_5_5():
    assert round(mb(laid_out("PNN", mlp(), 10)), 1) == 253.8


@pytest.mark.parametrize(
    ("tasks", "way", "printed"), [(5, 10, 12.2), (10, 10, 24.4), (100, 5, 243.7)]
)
def test_the_printed_tables_count_batch_norm_statistics(tasks, way, printed):
    """Parameters alone give 12.1, 24.3 and 242.7."""
    learner = laid_out("Independent", resnet(), tasks, way)
    assert round(mb(learner, statistics=True), 1) == printed
    assert round(mb(learner), 1) != printed


def test_only_one_path_runs_at_test_time():
    small = resnet(4, 16)
    n = sum(small.params) * 4
    for name in ("Independent", "EWC", "New-head freeze", "MNTDP-D", "MNTDP-S"):
        learner = laid_out(name, small, 3)
        assert inference_bytes(learner, 2) == n, name
    net = alexnet(0.05, 16)
    wide = alexnet(0.1, 16)
    narrow, broad = (inference_bytes(laid_out("HAT", b, 3), 2) for b in (net, wide))
    assert narrow == sum(net.params) * 4 and broad == sum(wide.params) * 4 > 2 * narrow
    # a progressive network runs every column
    assert inference_bytes(laid_out("PNN", small, 3), 2) > 2 * n


BLOCKS = [192 * 12 + 12, 12 * 12 + 12, 12 * 2 + 2]  # of mlp((3, 8, 8), 12), two classes
ONE = sum(BLOCKS)
SUFFIXES = sum(sum(BLOCKS[p:]) for p in range(3))  # new modules of all candidates of MNTDP-D
PAIR = ONE - BLOCKS[0]  # what connects two columns of a progressive network
# Parameters that run while the second task is learnt, and when it is predicted.
RUNS = {
    **dict.fromkeys(
        ["Independent", "Finetune", "New-head freeze", "New-head finetune", "New-leg freeze",
         "New-leg finetune", "EWC", "Online EWC"], (ONE, ONE)
    ),
    "ER": (ONE + BLOCKS[-1], ONE),  # old examples go through their own head
    "ER (reservoir)": (ONE + BLOCKS[-1], ONE),
    "PNN": (2 * ONE - BLOCKS[-1] + PAIR, 2 * ONE - BLOCKS[-1] + PAIR),
    "HAT": (ONE, ONE),
    "MNTDP-S": (2 * ONE, ONE),
    "MNTDP-S (k=all)": (2 * ONE, ONE),
    "MNTDP-D": (ONE + SUFFIXES, ONE),
    "MNTDP-D (k=all)": (ONE + SUFFIXES, ONE),
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNERS)
def test_what_runs_in_training_and_in_prediction(name, digits, quick):
    """Table 5.4 without what is merely kept: Fisher matrices, replayed images, other modules."""
    one_rate = {"gamma_lr": (0.01,)} if "MNTDP-S" in name else {}
    learner = make_learner(name, mlp((3, 8, 8), 12), quick, **one_rate)
    learner.learn(digits[0])
    with executed_parameters() as seen:
        learner.learn(digits[1])
    training, prediction = tensor_bytes(seen.values()), inference_bytes(learner, 1)
    if name in RUNS:
        assert (training, prediction) == tuple(4 * n for n in RUNS[name])
    elif name == "Learn-to-grow":  # every option of a layer is tried, one is kept
        assert training > 2 * ONE * 4 and ONE * 4 <= prediction < training
    else:  # DEN and RCL grow one network, and all its layers run: heavier at test time
        parts = [*learner.net.layers, learner.net.heads[1]]
        assert prediction == tensor_bytes(p for m in parts for p in m.parameters())
        assert prediction > ONE * 4 or learner.net.widths == [192, 12, 12]
