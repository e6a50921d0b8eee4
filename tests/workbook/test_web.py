"""The book as pages: every formula, link and size, and the living parts in a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from nbformat.v4 import new_output

from nas_core.workbook import web
from nas_core.workbook.book import Book, BookError
from nas_core.workbook.cli import main
from tests.viz.browser import chromium, needs_chromium, new_page, screenshot
from tests.workbook.books import code, make_book, text

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    web.make_pages(Book.load(ROOT), out)
    return out


class Read(HTMLParser):
    """Targets and names of a page, and whether its tags close in order."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "hr", "source"})

    def __init__(self, page: str):
        super().__init__()
        self.ids, self.links, self.loads, self.open, self.unnamed = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.links.append(values["href"])
        if tag in ("script", "img", "audio", "source", "iframe", "link"):
            self.loads += [values[k] for k in ("src", "href") if values.get(k)]
        if tag == "img" and not values.get("alt"):
            self.unnamed.append(values.get("src", "")[:40])

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_a_page_per_ready_chapter_each_at_most_one_and_a_half_megabytes(site):
    names = {c.name for c in Book.load(ROOT).ready}
    assert {p.stem for p in site.glob("*.html")} == names | {"index"}
    assert max(p.stat().st_size for p in site.glob("*.html")) <= 1_500_000


def test_links_lead_somewhere_and_nothing_is_loaded_from_another_host(site):
    pages = {p.name: Read(p.read_text("utf-8")) for p in site.glob("*.html")}
    for name, page in pages.items():
        assert page.open == [], name
        assert page.unnamed == [], name
        assert len(page.ids) == len(set(page.ids)), name
        for target in page.loads:
            assert target.startswith("data:") or (site / target).is_file(), (name, target)
        for link in page.links:
            if link.startswith(("https://", "http://")):
                continue  # a reader follows it; the page does not
            there, _, anchor = link.partition("#")
            assert not anchor or anchor in pages[there or name].ids, (name, link)
            assert there == "" or there in pages, (name, link)


def test_no_formula_is_left_as_tex(site):
    formulas = 0
    for page in site.glob("*.html"):
        words = re.sub(r"<(script|pre|code)\b.*?</\1>|<!--.*?-->", "", page.read_text(), flags=re.S)
        formulas += words.count("<math ")
        assert not re.search(r"\$\\|\\(frac|sum|mathbf|mathcal)\b", re.sub(r"<[^>]*>", "", words))
    assert formulas > 250


@pytest.mark.parametrize(
    ("tex", "inside"),
    [
        (r"\frac{1}{B}\sum_b D_b", "<mfrac>"),
        (r"j^* = \arg\max_j x_j", "<mo>max</mo>"),
        (r"a < b", "&#x0003C;"),
    ],
)
def test_formulas(tex, inside):
    done = web.mathml(tex, "block")
    assert inside in done
    assert "\\" not in re.sub(r'alttext="[^"]*"', "", done)


def test_an_unknown_command_is_named():
    with pytest.raises(BookError, match=r"\\nosuchthing"):
        web.mathml(r"\nosuchthing x", "inline")


def small(tmp_path, *cells) -> str:
    book = make_book(tmp_path / "book", {"01_a": list(cells), "02_b": []})
    web.make_pages(Book.load(book), tmp_path / "out")
    return (tmp_path / "out" / "01_a.html").read_text("utf-8")


def test_outputs_solutions_and_links_of_a_cell(tmp_path):
    shown = code("1 < 2")
    shown.outputs = [
        new_output("stream", name="stdout", text="\x1b[31ma < b\x1b[0m\n"),
        new_output("display_data", {"text/html": "<b>table</b><img src='a'>", "text/plain": "no"}),
        new_output("display_data", {"image/png": "AAAA\n", "text/plain": 'a "graph"'}),
    ]
    solution = code("# One solution.\nsecret = 1", "solution", jupyter={"source_hidden": True})
    page = small(tmp_path, text("## A `b` $x_1$\n[next](02_b.ipynb#A-b)"), shown, solution)
    assert "<pre>a &lt; b\n</pre>" in page
    assert "<b>table</b><img alt=" in page and "no</pre>" not in page
    assert 'alt="a &quot;graph&quot;" src="data:image/png;base64,AAAA"' in page
    assert re.search(r"<details><summary>One solution\.</summary>.*secret", page, re.S)
    assert 'href="02_b.html#A-b"' in page


def test_pages_of_an_earlier_call_are_replaced_and_other_files_are_never_touched(tmp_path, capsys):
    book = Book.load(make_book(tmp_path / "book", {"01_a": []}))
    out = tmp_path / "out"
    web.make_pages(book, out)
    (out / "01_gone.html").write_text("old")
    web.make_pages(book, out)
    assert sorted(p.name for p in out.iterdir()) == [
        "01_a.html", "index.html", "search.js", "web.css", "web.js",
    ]  # fmt: skip
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    assert main(["html", str(mine)]) == 2
    assert "holds files that are not pages" in capsys.readouterr().err
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]


@needs_chromium
@pytest.mark.browser
def test_offline_in_a_browser(site):
    """Views, sliders, panels, search, colours; no request, no error on any page."""
    kinds = set()
    with chromium() as browser:
        page = new_page(browser)
        page.context.set_offline(True)
        for chapter in sorted(site.glob("*.html")):
            page.goto(chapter.as_uri())
            for twin in page.locator(".nas-twin").all():
                twin.evaluate("e => e.scrollIntoView({behavior: 'instant', block: 'center'})")
                twin.locator(".nas-view").wait_for()
                still = twin.locator("xpath=../preceding-sibling::*[1]//img")
                assert still.count() == 0 or not still.last.is_visible()
                if (edge := twin.locator("[data-edge]")).count() and "graph" not in kinds:
                    kinds.add("graph")
                    before = twin.inner_text()
                    edge.first.focus()
                    page.keyboard.press("Enter")
                    assert twin.inner_text() != before  # so many of so many edges
                slider = twin.locator("input[type=range]")
                if slider.count() and "slider" not in kinds:
                    kinds.add("slider")
                    before = twin.inner_html()
                    slider.first.focus()
                    page.keyboard.press("ArrowLeft")
                    assert twin.inner_html() != before
        assert kinds == {"graph", "slider"}

        page.goto((site / "03_budgeted_super_networks.html").as_uri())
        page.locator("#find").fill("baseline")
        first = page.locator("#found a").first
        first.wait_for()
        assert page.locator("#found mark").first.inner_text().lower() == "baseline"
        theme = page.locator("html").get_attribute("theme")
        page.locator("#theme").click()
        assert page.locator("html").get_attribute("theme") != theme
        screenshot(page, "page_of_the_book")
        first.click()
        page.wait_for_load_state()
        assert page.locator("html").get_attribute("theme") != theme  # kept on the next page
        assert page.problems == []
        assert all(url.startswith(("file:", "blob:", "data:")) for url in page.requests)


@needs_chromium
@pytest.mark.browser
def test_a_narrow_screen_needs_no_sideways_scrolling(site):
    with chromium() as browser:
        page = new_page(browser)
        page.set_viewport_size({"width": 390, "height": 800})
        for name in ("index", "03_budgeted_super_networks", "09_mntdp"):
            page.goto((site / f"{name}.html").as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, name
