"""Headless Chromium for the tests of the views, and a page that hosts the ESM alone."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
]  # fmt: skip
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="NOT TESTED: no Chromium (Debian: apt-get install chromium) or no playwright package",
)

_HOST = """
async ({esm, css, state, dark}) => {
  document.body.dataset.jpThemeLight = String(!dark);
  document.body.style.cssText = dark ? 'background:#111' : 'background:#fff';
  const style = document.createElement('style');
  style.textContent = (dark ? `:root{--jp-ui-font-color1:rgba(255,255,255,.87);
    --jp-ui-font-color2:rgba(255,255,255,.54);--jp-layout-color0:#111;--jp-layout-color2:#424242;
    --jp-border-color1:#616161;}` : '') + css;
  document.head.append(style);
  const handlers = {};
  const fire = (name) => (handlers[name] ?? []).forEach((f) => f());
  const model = window.model = {
    state, saved: [], sent: [], pending: {},
    get: (key) => model.state[key],
    set(key, value) {
      for (const [k, v] of Object.entries(typeof key === 'string' ? {[key]: value} : key)) {
        if (model.state[k] === v) continue;
        model.state[k] = model.pending[k] = v;
        fire('change:' + k);
      }
    },
    save_changes() { model.saved.push(model.pending); model.pending = {}; },
    send: (message) => model.sent.push(message),
    on: (name, f) => (handlers[name] ??= []).push(f),
    off: (name, f) => (handlers[name] = (handlers[name] ?? []).filter((g) => g !== f)),
  };
  window.esm = await import(URL.createObjectURL(new Blob([esm], {type: 'text/javascript'})));
  const el = document.createElement('div');
  document.body.append(el);
  window.cleanup = await window.esm.default.render({model, el});
}
"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; Playwright allows one at a time."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser: Any) -> Any:
    """A page that gathers console errors, uncaught errors and the addresses it asks for."""
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    page.set_default_timeout(600_000)  # milliseconds, for what never comes
    page.problems, page.requests = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda m: m.type == "error" and page.problems.append(m.text))
    page.on("request", lambda request: page.requests.append(request.url))
    return page


def host(page: Any, view: Any, *, dark: bool = False) -> None:
    """Show a view in an empty page, with a model that records what would go to Python."""
    state = view.get_state()
    page.goto("about:blank")
    page.evaluate(
        _HOST,
        {
            "esm": state["_esm"],
            "css": state["_css"],
            "dark": dark,
            "state": {k: state[k] for k in ("_spec", "mask", "frame", "_priced") if k in state},
        },
    )


def screenshot(page: Any, name: str) -> None:
    """Keep a picture where SCREENSHOTS names a folder, for people to look at."""
    if folder := os.environ.get("SCREENSHOTS"):
        os.makedirs(folder, exist_ok=True)
        page.screenshot(path=os.path.join(folder, f"{name}.png"))
