"""The views in a real JupyterLab: with a kernel, and reopened as a trusted file without one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.viz.browser import needs_chromium, new_page, screenshot

pytestmark = [needs_chromium, pytest.mark.browser]

ROOT = Path(__file__).parents[2]
SETUP = """
import torch
from nas_core.costs import AdditiveCost
from nas_core.viz import ArchView, ParetoPanel
from tests.viz.spaces import annealed, fabric, keyword_chain, module_grid
from tests.viz.spaces import residual_chain, task_paths
"""
CELLS = {
    "search": """
graph = fabric(4, 4)
cost = AdditiveCost(graph.macs, "computation", "macs")
search = ArchView(graph, frames=annealed(graph, 30), cost=cost, budget=1e5, title="search")
search""",
    "stream": """
chain = keyword_chain()
steps = torch.ones(10, len(chain), dtype=torch.bool)
steps[:5, 1] = False
stream = ArchView(chain, frames=steps, frame_label="step", title="stream",
                  cost=lambda mask: mask.sum(1).double() ** 2)
stream""",
    "tasks": """
modules = module_grid(3, 4)
names = ["task 1: digits", "task 2: clothes", "task 3: shapes"]
tasks = ArchView(modules, frames=task_paths(modules, 3, 4), frame_names=names, title="tasks")
tasks""",
    "front": """
runs = [p > 0.5 for p in annealed(graph, 3)]
runs[0] = runs[0].clone()
runs[0][4] = False
front = ParetoPanel(graph, runs, [3, 2, 1], [0.9, 0.8, 0.7], cost=cost, title="front")
front""",
    "parallel": """
parallel = ArchView(residual_chain(), title="parallel")
parallel""",
}


def notebook(kernel: str = "python3") -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_code_cell(c.strip()) for c in (SETUP, *CELLS.values())]
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"
    spec = {"name": kernel, "display_name": kernel, "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """An empty home with two notebooks; the second is executed and trusted."""
    home = tmp_path_factory.mktemp("lab")
    os.environ.update(_environment(home))
    nbformat.write(notebook(), home / "live.ipynb")
    done = NotebookClient(notebook(), timeout=300).execute()
    nbformat.write(done, home / "still.ipynb")
    trust = [sys.executable, "-m", "jupyter", "trust", str(home / "still.ipynb")]
    subprocess.run(trust, check=True, capture_output=True)
    return home


def _environment(home: Path) -> dict[str, str]:
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    return {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module", autouse=True)
def _restore_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def server(home) -> Iterator[str]:
    """The address of a JupyterLab that serves `home`."""
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        "--port=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={home}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with open(home / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home)
    try:
        yield _address(home, process)
    finally:
        process.terminate()
        process.wait(30)


def _address(home: Path, process: subprocess.Popen) -> str:
    for _ in range(240):
        for file in (home / "runtime").glob(f"jpserver-{process.pid}.json"):
            try:
                url = json.loads(file.read_text())["url"]
                urllib.request.urlopen(f"{url}api", timeout=5)
                return url
            except (OSError, ValueError):
                pass
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise RuntimeError(f"JupyterLab did not start:\n{(home / 'server.log').read_text()}")


def opened(browser, server: str, name: str):
    """A page with a notebook."""
    page = new_page(browser)
    page.set_default_timeout(120_000)
    page.goto(f"{server}lab/tree/{name}")
    page.locator(".jp-Notebook").wait_for()
    return page


def assert_clean(page, server: str) -> None:
    """Nothing went out, nothing went wrong."""
    assert [u for u in page.requests if not u.startswith((server, "data:", "blob:"))] == []
    assert page.problems == []
    page.close()


@pytest.fixture(scope="module")
def live(server, browser):
    page = opened(browser, server, "live.ipynb")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady")
    page.wait_for_function(
        "jupyterapp.shell.currentWidget.sessionContext.kernelDisplayStatus === 'idle'"
    )
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
    view(page, "parallel").wait_for()
    yield page
    assert_clean(page, server)


def view(page, title: str):
    return page.locator(f'.nas-arch[aria-label="{title}"]')


def edge(page, title: str, name: str):
    return view(page, title).locator(f'[data-edge="{name}"]')


def python(page, expression: str) -> str:
    """What the kernel behind the notebook prints for an expression."""
    return page.evaluate(
        """async (code) => {
          const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
          let text = '';
          const future = kernel.requestExecute({ code, store_history: false });
          future.onIOPub = (m) => { text += m.content.text ?? ''; };
          await future.done;
          return text.trim();
        }""",
        f"print({expression})",
    )


def scrub(page, title: str, key: str) -> None:
    slider = view(page, title).locator("input[type=range]")
    slider.scroll_into_view_if_needed()
    slider.focus()
    page.keyboard.press(key)


def check_search(page) -> None:
    """Click an edge of the fabric, move through its epochs."""
    target = edge(page, "search", "0,0→0,1 down")
    before = view(page, "search").locator(".price").inner_text()
    if target.get_attribute("aria-checked") == "false":
        scrub(page, "search", "Home")
    target.locator(".hit").click(force=True)
    assert target.get_attribute("aria-checked") == "false"
    scrub(page, "search", "Home")
    assert view(page, "search").locator(".when").inner_text() == "epoch 1 of 30"
    assert view(page, "search").locator(".edge.live").count() == 38
    after = view(page, "search").locator(".price").inner_text()
    assert after != before and "over the budget" in after


def check_stream(page) -> None:
    scrub(page, "stream", "Home")
    assert view(page, "stream").locator(".when").inner_text() == "step 1 of 10"
    assert "off" in edge(page, "stream", "conv1→conv2 conv").get_attribute("class")
    assert "dead" in edge(page, "stream", "conv2→lin1 conv").get_attribute("class")
    scrub(page, "stream", "End")
    assert view(page, "stream").locator(".edge.live").count() == 9


def check_tasks(page) -> None:
    scrub(page, "tasks", "Home")
    assert view(page, "tasks").locator(".when").inner_text() == "task 1: digits"
    assert view(page, "tasks").locator(".edge.live").count() == 5
    scrub(page, "tasks", "ArrowRight")
    assert "live" in edge(page, "tasks", "m0,0→m1,1 new").get_attribute("class")


def check_front(page) -> None:
    view(page, "front").locator('[data-point="0"]').click()
    assert view(page, "front").locator(".edge.off").count() == 1
    view(page, "front").locator('[data-point="2"]').click()
    assert view(page, "front").locator(".edge.off").count() > 5


def check_parallel(page) -> None:
    for kind in ("conv", "shortcut"):
        line = edge(page, "parallel", f"1→2 {kind}").locator(".line")
        line.scroll_into_view_if_needed()
        x, y = line.evaluate(
            """(n) => {
              const p = n.getPointAtLength(n.getTotalLength() / 2);
              const q = p.matrixTransform(n.getScreenCTM());
              return [q.x, q.y];
            }"""
        )
        page.mouse.click(x, y)
    assert view(page, "parallel").locator(".edge.off").count() == 2
    assert view(page, "parallel").locator(".edge.dead").count() == 4


CHECKS = {
    "search": check_search, "stream": check_stream, "tasks": check_tasks, "front": check_front,
    "parallel": check_parallel,
}  # fmt: skip


@pytest.mark.parametrize("kind", CHECKS)
def test_with_a_kernel(live, kind):
    CHECKS[kind](live)
    shown = view(live, kind).locator(".summary").inner_text()
    kept = int(re.match(r"(\d+) of", shown).group(1))
    for _ in range(40):  # the mask travels to Python
        answer = python(live, f"len({kind}.architecture.kept)")
        if answer == str(kept):
            break
        time.sleep(0.25)
    assert answer == str(kept)
    view(live, kind).scroll_into_view_if_needed()
    screenshot(live, f"lab_{kind}")


def test_the_real_cost_object_answers(live):
    scrub(live, "stream", "End")
    target = edge(live, "stream", "in→sum shortcut")
    target.focus()
    live.keyboard.press("Enter")
    price = view(live, "stream").locator(".price")
    price.get_by_text("64 —").wait_for(timeout=20_000)  # (9 − 1)²: known in Python only
    assert python(live, "stream.cost_value") == "64.0"
    assert python(live, "stream.mask.sum().item()") == "8"
    python(live, "setattr(stream, 'frame', 0)")  # and from Python to the page
    view(live, "stream").get_by_text("step 1 of 10").wait_for(timeout=20_000)


def test_running_a_cell_again_shows_a_fresh_view(live):
    edge(live, "parallel", "0→1 conv").focus()
    live.keyboard.press("Enter")
    live.evaluate(
        """async () => {
          const { content } = jupyterapp.shell.currentWidget;
          content.activeCellIndex = content.widgets.length - 1;
          await jupyterapp.commands.execute('notebook:run-cell');
        }"""
    )
    count = "document.querySelectorAll('[aria-label=parallel] .edge.live').length"
    live.wait_for_function(f"{count} === 6")


def test_dark_theme(live):
    change = "(theme) => jupyterapp.commands.execute('apputils:change-theme', { theme })"
    live.evaluate(change, "JupyterLab Dark")
    live.wait_for_selector('body[data-jp-theme-light="false"]', state="attached")
    line = edge(live, "search", "in→0,0 stem").locator(".line")
    assert line.evaluate("n => getComputedStyle(n).stroke") == "rgb(138, 138, 138)"
    for kind in CHECKS:
        view(live, kind).scroll_into_view_if_needed()
        screenshot(live, f"lab_{kind}_dark")
    live.evaluate(change, "JupyterLab Light")


def test_trusted_file_without_a_kernel(server, browser):
    """The saved state alone feeds the views: nothing was run, and the kernel is shut down.

    JupyterLab restores saved widgets only after some kernel has answered, even one that knows
    none of them (jupyter-widgets/ipywidgets#3773), so the file is opened before the shutdown.
    """
    page = opened(browser, server, "still.ipynb")
    for kind in CHECKS:  # all have read their state before the kernel goes
        view(page, kind).wait_for(state="attached")
        view(page, kind).scroll_into_view_if_needed()
    assert python(page, "'ArchView' in dir()") == "False"
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.wait_for_function("!jupyterapp.shell.currentWidget.sessionContext.session")
    for kind, check in CHECKS.items():
        view(page, kind).scroll_into_view_if_needed()
        check(page)
    view(page, "search").get_by_label("play").click()
    page.wait_for_function(
        "document.querySelector('[aria-label=search] .when').textContent === 'epoch 30 of 30'"
    )
    assert page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session") is None
    screenshot(page, "lab_without_kernel")
    assert_clean(page, server)


def test_untrusted_readers_see_the_picture(home):
    """What GitHub and untrusted notebooks show."""
    saved = nbformat.read(home / "still.ipynb", 4)
    for cell in saved.cells[1:]:
        (output,) = cell.outputs
        assert output.data["image/png"].startswith("iVBOR")
        assert re.fullmatch(r"(ArchView|ParetoPanel)\(.+\)", output.data["text/plain"])
    assert (home / "still.ipynb").stat().st_size < 1_000_000
