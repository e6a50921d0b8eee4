"""The views in a real JupyterLab: with a kernel, and as a trusted file that never had one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from nas_core.viz.stream_panel import StreamPanel
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
    "sound": """
posteriors = torch.eye(10)[:, :3].softmax(1).numpy()
sound = StreamPanel(torch.randn(48_000), posteriors, range(0, 2000, 200), range(1000, 2000, 100),
                    ["silence", "yes", "no"], truth=[("yes", 400.0)], found=[("yes", 600.0)],
                    view=stream, title="sound")
sound""",
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
    done = NotebookClient(notebook(), timeout=1500).execute()
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


@contextmanager
def serving(home: Path, *options: str) -> Iterator[str]:
    """The address of a JupyterLab that serves `home`."""
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        "--port=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={home}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", *options,
    ]  # fmt: skip
    with open(home / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home)
    try:
        yield _address(home, process)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="module")
def server(home) -> Iterator[str]:
    with serving(home) as url:
        yield url


def _address(home: Path, process: subprocess.Popen) -> str:
    for _ in range(3000):
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


# anywidget reports "Failed to initialize model" when a view took more than two seconds to load,
# and then shows it all the same: on a busy machine that is no error.
PATIENT = """const limit = AbortSignal.timeout.bind(AbortSignal);
AbortSignal.timeout = (ms) => limit(100 * ms)"""


def opened(browser, server: str, name: str):
    """A page with a notebook."""
    page = new_page(browser)
    page.add_init_script(PATIENT)
    page.set_default_timeout(600_000)
    page.goto(f"{server}lab/tree/{name}?reset")
    page.locator(".jp-Notebook").wait_for()
    return page


def assert_clean(page, server: str, known: Sequence[str] = ()) -> None:
    """Nothing went out, nothing went wrong."""
    assert [u for u in page.requests if not u.startswith((server, "data:", "blob:"))] == []
    assert [problem for problem in page.problems if problem not in known] == []
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
    return page.locator(f'.nas-view[aria-label="{title}"]:visible')


def show(page, title: str):
    """Scroll to a cell, as JupyterLab draws only those that can be seen."""
    page.evaluate(
        """async (i) => {
          const { content } = jupyterapp.shell.currentWidget;
          content.activeCellIndex = i;
          await content.scrollToItem(i);
        }""",
        1 + list(CELLS).index(title),
    )
    view(page, title).wait_for()
    view(page, title).scroll_into_view_if_needed()
    return view(page, title)


def edge(page, title: str, name: str):
    return view(page, title).locator(f'[data-edge="{name}"]')


def python(page, expression: str) -> str:
    """What the kernel behind the notebook prints for an expression.

    A notebook gets its session some time after it is shown, on a busy machine minutes later, and
    may lose it again while it starts: waiting and asking are one step.
    """
    return page.evaluate(
        """async (code) => {
          const found = () => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel;
          const limit = Date.now() + 600_000;
          let kernel = found();
          while (kernel?.connectionStatus !== 'connected') {
            if (Date.now() > limit) throw new Error('the notebook got no kernel');
            await new Promise((resolve) => setTimeout(resolve, 100));
            kernel = found();
          }
          let text = '';
          const future = kernel.requestExecute({ code, store_history: false });
          future.onIOPub = (m) => { text += m.content.text ?? ''; };
          await future.done;
          return text.trim();
        }""",
        f"print({expression})",
    )


def wait_for_python(page, expression: str, answer: str) -> None:
    """Until the kernel gives this answer; what changed on the page reaches it a little later."""
    limit = time.monotonic() + 1500
    while (said := python(page, expression)) != answer:
        assert time.monotonic() < limit, f"{expression} is {said}, not {answer}"


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


def check_sound(page) -> None:
    """The panel and the architecture of the step move together."""
    scrub(page, "stream", "Home")
    show(page, "sound")
    scrub(page, "sound", "End")
    assert "1.9 k macs" in view(page, "sound").locator("output").inner_text()
    show(page, "stream").get_by_text("step 10 of 10").wait_for()
    scrub(page, "stream", "Home")
    show(page, "sound").get_by_text("1 k macs").wait_for()


CHECKS = {
    "search": check_search, "stream": check_stream, "tasks": check_tasks, "front": check_front,
    "sound": check_sound, "parallel": check_parallel,
}  # fmt: skip


@pytest.mark.parametrize("kind", CHECKS)
def test_with_a_kernel(live, kind):
    show(live, kind)
    CHECKS[kind](live)
    assert live.locator(".nas-twin .nas-view").count() == 0  # the living view alone
    screenshot(live, f"lab_{kind}")
    if kind == "sound":
        return  # has no mask
    shown = view(live, kind).locator(".summary").inner_text()
    kept = int(re.match(r"(\d+) of", shown).group(1))
    wait_for_python(live, f"len({kind}.architecture.kept)", str(kept))  # the mask travels


def test_the_real_cost_object_answers(live):
    scrub(live, "stream", "End")
    target = edge(live, "stream", "in→sum shortcut")
    target.focus()
    live.keyboard.press("Enter")
    price = view(live, "stream").locator(".price")
    price.get_by_text("64 —").wait_for()  # (9 − 1)²: known in Python only
    wait_for_python(live, "stream.cost_value", "64.0")
    wait_for_python(live, "stream.mask.sum().item()", "8")
    python(live, "setattr(stream, 'frame', 0)")  # and from Python to the page
    view(live, "stream").get_by_text("step 1 of 10").wait_for()


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
    assert line.evaluate("n => getComputedStyle(n).stroke") == "rgb(179, 227, 255)"
    for kind in CHECKS:
        show(live, kind)
        screenshot(live, f"lab_{kind}_dark")
    live.evaluate(change, "JupyterLab Light")


def check_film(page) -> None:
    show(page, "search").get_by_label("play").click()
    page.wait_for_function(
        "document.querySelector('[aria-label=search] .when').textContent === 'epoch 30 of 30'"
    )


def test_trusted_file_that_never_had_a_kernel(home, browser):
    """No kernel from the start, where JupyterLab does not restore widgets (ipywidgets#3773).

    Its widget manager complains about the missing kernel even where a notebook is empty.
    """
    nbformat.write(nbformat.v4.new_notebook(metadata=notebook().metadata), home / "empty.ipynb")
    with serving(home, "--LabServerApp.notebook_starts_kernel=False") as url:
        empty = opened(browser, url, "empty.ipynb")  # open as long as the other page
        page = opened(browser, url, "still.ipynb")
        for kind, check in CHECKS.items():
            show(page, kind)
            check(page)
            screenshot(page, f"lab_never_a_kernel_{kind}")
        check_film(page)
        assert page.locator(":not(.nas-twin) > div > .nas-view").count() == 0
        assert page.get_by_text("Loading widget").locator("visible=true").count() == 0
        assert page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session") is None
        assert page.evaluate("[...jupyterapp.serviceManager.sessions.running()].length") == 0
        assert_clean(page, url, known=empty.problems)
        empty.close()


def test_trusted_file_whose_kernel_goes_away(server, browser):
    """The saved state feeds the widgets once some kernel has answered, and after its end."""
    page = opened(browser, server, "still.ipynb")
    for kind in CHECKS:  # all have read their state before the kernel goes
        show(page, kind)
        page.wait_for_function("!document.querySelector('.nas-twin .nas-view')")
    assert python(page, "'ArchView' in dir()") == "False"
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.wait_for_function("!jupyterapp.shell.currentWidget.sessionContext.session")
    for kind, check in CHECKS.items():
        show(page, kind)
        check(page)
    check_film(page)
    marks = page.locator(".jupyter-widgets-disconnected:has(> .nas-view)").evaluate_all(
        "all => all.map((n) => getComputedStyle(n, '::before').content)"
    )
    assert set(marks) == {'"recorded view; run the cell to connect"'}  # and no red icon
    screenshot(page, "lab_kernel_gone")
    assert page.evaluate("jupyterapp.shell.currentWidget.sessionContext.session") is None
    assert_clean(page, server)


def test_untrusted_readers_see_the_picture(home):
    """What GitHub and untrusted notebooks show."""
    saved = nbformat.read(home / "still.ipynb", 4)
    for cell in saved.cells[1:]:
        output, twin = cell.outputs
        assert list(twin.data) == ["text/html"] and output.data["image/png"].startswith("iVBOR")
        assert re.fullmatch(r"(ArchView|ParetoPanel|StreamPanel)\(.+\)", output.data["text/plain"])
    assert (home / "still.ipynb").stat().st_size < 1_000_000
