"""Planned chapters are drafts; every ready one is compared cell by cell, or the run fails."""

from collections import Counter
from pathlib import Path

import pytest

from nas_core.workbook import Book, notebooks

HERE = Path(__file__).resolve().parent
collect_ignore = [c.path.name for c in Book.load().chapters.values() if c.status != "ready"]
collect_ignore += ["checks"]


class NotCompared(pytest.Item):
    def runtest(self):
        raise AssertionError(self.name)


@pytest.hookimpl(tryfirst=True)  # before `-k` takes cells away
def pytest_collection_modifyitems(session, config, items):
    """Without nbval, or with one that reads a notebook in part, nothing would be compared."""
    wanted = [Path(config.invocation_params.dir, a.split("::")[0]).resolve() for a in config.args]
    cells = Counter(item.path for item in items)
    for chapter in Book.load(HERE.parent).ready:
        if not {chapter.path, *chapter.path.parents} & set(wanted):
            continue
        code = notebooks.code_cells(notebooks.read(chapter.path))
        count = sum("nbval-skip" not in notebooks.tags(c) and bool(c.source.strip()) for c in code)
        if cells[chapter.path] < count:
            name = f"nbval found {cells[chapter.path]} of {count} cells of {chapter.path.name}: "
            name += "compare chapters with `nas-workbook test`"
            items.append(NotCompared.from_parent(session, name=name))


def pytest_itemcollected(item):
    """Views carry their state along (nas_core.viz.page): of them, nbval compares the description.

    All numbers of a search are in that state, to the last digit; cells print those that matter.
    """
    patterns = getattr(item.parent, "sanitize_patterns", None)
    if patterns is not None:
        patterns[r'(?s)<div class="nas-twin">.*</div>'] = "the view without a kernel"
