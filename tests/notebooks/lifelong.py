"""The experiments of chapters 08 to 10, to be lived through by other learners than theirs."""

from functools import cache

from nas_core.continual import (
    FitConfig,
    Stream,
    StreamRun,
    alexnet,
    ctrl_stream,
    make_learner,
    run_stream,
    task_source,
)
from nas_core.workbook import chapter


class Life:
    """Streams and training of a chapter at its smoke profile."""

    def __init__(self, name: str):
        cfg = chapter(name, device="cpu")
        self.cfg = cfg
        self.images = task_source(cfg.data, cfg.size, cfg.pool)
        self.config = FitConfig(
            lr=tuple(cfg.lr), weight_decay=tuple(cfg.weight_decay), batch_size=cfg.batch_size,
            max_steps=cfg.max_steps, patience=cfg.patience,
        )  # fmt: skip
        self.run = cache(self._run)

    def stream(self, name: str, *keep: int) -> Stream:
        """The chapter's version of a stream, or some of its tasks."""
        sizes = {k: tuple(v) for k, v in self.cfg.sizes.items()}
        tasks = {"tasks": self.cfg.tasks} if name == "long" else {}
        stream = ctrl_stream(name, self.images, sizes=sizes, augment=False, **tasks)
        if name != "long":
            stream = stream.keep(*self.cfg.keep)
        return stream.keep(*keep) if keep else stream

    def _run(self, learner: str, name: str, *keep: int, seed: int = 0, **options) -> StreamRun:
        backbone = alexnet(self.cfg.width, self.cfg.size)
        made = make_learner(learner, backbone, self.config, seed=seed, **options)
        return run_stream(made, self.stream(name, *keep), beta=None)

    def last(self, learner: str, name: str, *keep: int, **options) -> float:
        """Accuracy on the last task at the end."""
        return float(self.run(learner, name, *keep, **options).accuracy[-1, -1])
