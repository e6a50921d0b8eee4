"""Checks of chapter 17, growing and early exit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_core.workbook.checks import Problem, exercise, same


class _Counted(nn.Module):
    """Multiplies by a number and remembers how many rows came."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor, self.rows = factor, []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return x * self.factor


def _early_exit(blocks, classifiers, x: Tensor, q: float, mistake: str = "") -> tuple:
    """Answers and exits, by going through all blocks with all rows."""
    inside = torch.ones(len(x), dtype=torch.bool)
    answer, depth = torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x), dtype=torch.long)
    for i, (block, classify) in enumerate(zip(blocks, classifiers, strict=True)):
        x = block(x)
        logits = classify(x)
        sure = (logits if mistake == "logits" else logits.softmax(1)).amax(1) > q
        leaves = inside & (sure | (i == len(blocks) - 1))
        if mistake == "stays":
            leaves = inside & sure
        answer[leaves], depth[leaves] = logits.argmax(1)[leaves], i
        inside &= ~leaves
    return answer, depth


@exercise("17.1", "early exit for a batch")
def ex_17_1(answer) -> Problem:
    """`fn(blocks, classifiers, x [B, c], q) -> (predictions [B], exits [B])`, int64."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=g)
    matrices = [torch.randn(3, 4, generator=g) for _ in range(3)]
    classifiers = [lambda z, m=m: z @ m for m in matrices]
    for label, rows, q in (
        ("a threshold of 0.6", x, 0.6),
        ("threshold 1, where all reach the end", x, 1.0),
        ("threshold 0, where all leave at the first classifier", x, 0.0),
    ):
        blocks = [_Counted(f) for f in (0.4, 1.5, 2.0)]
        want = _early_exit(blocks, classifiers, rows, q)
        counts = [(want[1] >= i).sum().item() for i in range(3)]
        for block in blocks:
            block.rows.clear()
        got = answer(blocks, classifiers, rows.clone(), q)
        if not isinstance(got, tuple) or len(got) != 2:
            return "return two tensors: the predictions and the numbers of the classifiers"
        for name, mine, right in zip(("predictions", "exits"), got, want, strict=True):
            if problem := same(mine, right, 0.0):
                return f"for {label}: {name}: {problem}" + _exit_hint(
                    got, blocks, classifiers, rows, q
                )
        seen = [sum(block.rows) for block in blocks]
        if seen != counts:
            return (
                f"for {label} the answers are right, but the blocks computed {seen} rows instead "
                f"of {counts}; call a block with the rows that are still inside, and no others"
            )
    return None


def _exit_hint(got, blocks, classifiers, x: Tensor, q: float) -> str:
    depth = torch.as_tensor(got[1])
    if torch.equal(depth, _early_exit(blocks, classifiers, x, q, "logits")[1]):
        return "; the threshold is for probabilities: apply softmax to the logits"
    if torch.equal(depth, _early_exit(blocks, classifiers, x, q, "stays")[1]):
        return "; at the last classifier all remaining rows leave, sure or not"
    return "; are the rows mixed up? Keep the numbers of the rows that are still inside"


@exercise("17.2", "a growth event")
def ex_17_2(answer) -> Problem:
    """`fn(blocks, classifiers, optimizer, block, classifier)`, in place."""
    torch.manual_seed(0)
    blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    classifiers = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    old = [*blocks.parameters(), *classifiers.parameters()]
    optimizer = torch.optim.SGD(old, lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        x = torch.randn(4, 3)
        for block, classifier in zip(blocks, classifiers, strict=True):
            x = block(x)
            classifier(x).square().sum().backward(retain_graph=True)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.01
    optimizer.zero_grad()
    values = [p.detach().clone() for p in old]
    momenta = [optimizer.state[p]["momentum_buffer"].clone() for p in old]
    block, classifier = nn.Linear(3, 3), nn.Linear(3, 2)
    fresh = [p.detach().clone() for p in (*block.parameters(), *classifier.parameters())]
    answer(blocks, classifiers, optimizer, block, classifier)

    if len(blocks) != 3 or blocks[2] is not block:
        return f"`blocks` must end with the new block; it has {len(blocks)} entries"
    if len(classifiers) != 3 or classifiers[2] is not classifier:
        return f"`classifiers` must end with the new one; it has {len(classifiers)} entries"
    if not all(torch.equal(p, v) for p, v in zip(old, values, strict=True)):
        return "old weights have changed; growing only adds"
    new = [*block.parameters(), *classifier.parameters()]
    if not all(torch.equal(p, v) for p, v in zip(new, fresh, strict=True)):
        return "the weights of the new modules have changed; append the modules as they are"
    trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if not {id(p) for p in old} <= set(trained):
        return "the optimizer no longer trains the old weights; add a group, replace nothing"
    if missing := sum(id(p) not in trained for p in new):
        return f"the optimizer does not train {missing} of the 4 new tensors; add them as a group"
    kept = [optimizer.state.get(p, {}).get("momentum_buffer") for p in old]
    if any(m is None or not torch.equal(m, v) for m, v in zip(kept, momenta, strict=True)):
        return "the momentum of the old weights is gone; add a group to the optimizer that is there"
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    if any(rates[id(p)] != 0.01 for p in old):
        return f"the rate of the old weights is {rates[id(old[0])]}; it was 0.01"
    if any(rates[id(p)] != 0.01 for p in new):
        return (
            f"the new weights have rate {rates[id(new[0])]}, the first one of the training; "
            "the current rate is 0.01"
        )
    return None
