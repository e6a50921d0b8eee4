"""The book as static pages that ask no other host for anything.

Formulas become MathML, which browsers draw themselves. Views of architectures are alive through
the twins that the notebooks hold (`nas_core.viz.page`), search through one script of all texts.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from nas_core.files import write_atomic
from nas_core.workbook import notebooks
from nas_core.workbook.book import Book, BookError, Chapter

_HERE = Path(__file__).parent
_MARK = "index.html"  # with this comment in its first line the folder is one of ours
_OURS = "<!-- made by nas-workbook html -->"
_FORMULA = re.compile(r"(?<![$\\])\$([^$]+)\$")  # in a block of HTML, which Markdown leaves alone
_FIGURE = "Figure; its numbers are printed beside it"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def make_pages(book: Book, out: str | Path) -> list[Path]:
    """Write `index.html`, a page per ready chapter, and their style and scripts into `out`.

    A folder with anything else in it is refused with `BookError`; pages of an earlier call are
    replaced. Returns the written pages.
    """
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()):
        index = folder / _MARK
        if not (index.is_file() and index.read_text("utf-8").startswith(_OURS)):
            raise BookError(f"{folder} holds files that are not pages of this book; name another")
    elif folder.exists() and not folder.is_dir():
        raise BookError(f"{folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    texts: list[list[str]] = []
    pages = {_MARK: _page(book, None, _front(book), [])}
    for chapter in book.ready:
        body, headings, sections = _chapter(notebooks.read(chapter.path))
        pages[f"{chapter.name}.html"] = _page(book, chapter, body, headings)
        texts += [[f"{chapter.name}.html#{a}", chapter.title, *rest] for a, *rest in sections]
    for old in folder.glob("*.html"):
        if old.name not in pages:
            old.unlink()
    for name in ("web.css", "web.js"):
        shutil.copyfile(_HERE / name, folder / name)
    write_atomic(folder / "search.js", f"window.BOOK_TEXTS = {json.dumps(texts)};\n")
    for name, page in pages.items():
        write_atomic(folder / name, page)
    return [folder / name for name in pages]


# One chapter -------------------------------------------------------------------------------------


def _chapter(nb: NotebookNode) -> tuple[str, list[tuple[str, str]], list[list[str]]]:
    """HTML of the cells, headings [(anchor, title)], texts of the sections to search."""
    markdown, parts = _Markdown(), []
    sections: list[list[str]] = [["top", "", ""]]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for piece in re.split(r"(?m)^(?=#{1,3} )", cell.source):
                if title := re.match(r"#{1,3} +(.+)", piece):
                    name = _plain(title[1])
                    sections.append([_anchor(name), name, ""])
                sections[-1][-1] += " " + _plain(piece)
            parts.append(f'<section class="text">{markdown.render(cell.source)}</section>')
        elif cell.cell_type == "code":
            parts.append(_code_cell(cell))
    return "\n".join(parts), markdown.headings, [s for s in sections if s[-1].strip()]


def _code_cell(cell: NotebookNode) -> str:
    code = _highlight(cell.source)
    if cell.metadata.get("jupyter", {}).get("source_hidden"):
        first = html.escape(cell.source.splitlines()[0].lstrip("# ") if cell.source else "code")
        code = f"<details><summary>{first}</summary>{code}</details>"
    rows = [f'<div class="jp-OutputArea-child">{o}</div>' for o in map(_output, cell.outputs) if o]
    area = f'<div class="jp-OutputArea">{"".join(rows)}</div>' if rows else ""
    return f'<section class="cell">{code}{area}</section>'


def _output(output: NotebookNode) -> str:
    """One output in the richest form that needs no kernel."""
    if output.output_type == "stream":
        return f"<pre>{html.escape(_ANSI.sub('', output.text))}</pre>"
    if output.output_type == "error":
        return f"<pre>{html.escape(_ANSI.sub('', chr(10).join(output.traceback)))}</pre>"
    data = output.data
    if "text/html" in data:
        # a picture inside a table or panel of a chapter needs words too
        return re.sub(r"<img (?![^>]*\balt=)", f'<img alt="{_FIGURE}" ', str(data["text/html"]))
    if "image/svg+xml" in data:
        return str(data["image/svg+xml"])
    if "image/png" in data:
        words = str(data.get("text/plain", ""))
        alt = _FIGURE if words.startswith("<Figure") else words
        picture = str(data["image/png"]).replace("\n", "")
        return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{picture}">'
    if "text/markdown" in data:
        return _Markdown().render(str(data["text/markdown"]))
    return f"<pre>{html.escape(str(data.get('text/plain', '')))}</pre>"


def _highlight(source: str, language: str = "python") -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    lexer = get_lexer_by_name(language)
    return str(highlight(source, lexer, HtmlFormatter(cssclass="code", wrapcode=True)))


def _plain(text: str) -> str:
    """Words without Markdown, tags and white space, for headings and the search."""
    text = re.sub(r"<[^>]+>|[*`$\\]|^#+ ", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text))
    return " ".join(text.split())


def _anchor(title: str) -> str:
    """The anchor of a heading: as in JupyterLab, blanks become hyphens."""
    return title.replace(" ", "-")


class _Markdown:
    """Markdown with formulas to HTML; `headings` collects what has been rendered."""

    def __init__(self) -> None:
        from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

        pages, self.headings = self, list[tuple[str, str]]()

        class Renderer(IPythonRenderer):
            def heading(self, text: str, level: int, **_: Any) -> str:
                name = _plain(unescape(re.sub(r"<math.*?</math>", "", text)))
                anchor = html.escape(_anchor(name))
                if level == 2:
                    pages.headings.append((anchor, name))
                return f'<h{level} id="{anchor}">{text}</h{level}>\n'

            def link(self, text: str, url: str, title: str | None = None) -> str:
                return str(super().link(text, re.sub(r"\.ipynb(?=#|$)", ".html", url), title))

            def block_code(self, code: str, info: str | None = None) -> str:
                return _highlight(code, info.split()[0] if info and info.strip() else "text")

            def block_html(self, html: str) -> str:
                return _FORMULA.sub(lambda m: mathml(unescape(m[1]), "inline"), html)

            def block_math(self, body: str) -> str:
                return mathml(body, display="block")

            def inline_math(self, body: str) -> str:
                return mathml(body, display="inline")

        self.render = MarkdownWithMath(renderer=Renderer(escape=False)).render


def mathml(tex: str, display: str) -> str:
    """A formula as MathML with its source as `alttext`; `display` is "block" or "inline".

    Raises `BookError` with the formula when a command of it is not known.
    """
    from latex2mathml.converter import convert

    try:
        # \arg takes no argument in TeX, but the converter knows no such operator
        done = convert(re.sub(r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}", tex), display=display)
    except Exception as error:
        raise BookError(f"formula ${tex}$ cannot be converted: {error!r}") from error
    if left := re.search(r">[^<]*(\\[a-zA-Z]+)[^<]*<", done):
        raise BookError(f"formula ${tex}$ holds {left[1]}, which is not converted")
    alt = html.escape(" ".join(tex.split()))
    return done.replace("<math ", f'<math alttext="{alt}" ', 1)


# Around the chapters -----------------------------------------------------------------------------


def _front(book: Book) -> str:
    rows = []
    for part, title in book.parts.items():
        ready = [c for c in book.ready if c.part == part]
        cards = "".join(
            f'<a class="card" href="{c.name}.html"><b>{c.number} · {html.escape(c.title)}</b>'
            f"<span>{html.escape(c.question)}</span>"
            f"<small>{c.minutes.get('read', '?')} minutes to read</small></a>"
            for c in ready
        )
        name = title if part == "start" else f"Part {part} · {title}"
        rows += [f"<h2>{html.escape(name)}</h2><div class='cards'>{cards}</div>"] * bool(ready)
    start = "<p>Pages to read. To run the chapters and turn their knobs, install the book.</p>"
    return f"<h1>{html.escape(book.title)}</h1>{start}{''.join(rows)}"


def _page(book: Book, chapter: Chapter | None, body: str, headings: list[tuple[str, str]]) -> str:
    """The frame around a chapter: contents, search, colours, the chapters before and after."""
    items = []
    for c in book.ready:
        here = chapter is not None and c.name == chapter.name
        inner = "".join(f'<li><a href="#{a}">{html.escape(t)}</a></li>' for a, t in headings)
        items.append(
            f'<li><a href="{c.name}.html"{" aria-current=page" if here else ""}>'
            f"{c.number} · {html.escape(c.title)}</a>{f'<ol>{inner}</ol>' if here else ''}</li>"
        )
    around = ""
    if chapter:
        i = [c.name for c in book.ready].index(chapter.name)
        before, after = book.ready[max(i - 1, 0) : i], book.ready[i + 1 : i + 2]
        around = "".join(
            f'<a href="{c.name}.html">{mark} {c.number} · {html.escape(c.title)}</a>'
            for mark, chapters in (("←", before), ("→", after))
            for c in chapters
        )
    title = f"{chapter.number} · {chapter.title} — {book.title}" if chapter else book.title
    # the theme is set before anything is drawn: no flash of the other one
    return f"""{_OURS}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<link rel="stylesheet" href="web.css">
<script src="web.js"></script>
</head>
<body>
<a class="skip" href="#top">Skip to the text</a>
<nav aria-label="Contents">
<a class="home" href="{_MARK}">{html.escape(book.title)}</a>
<div class="tools" role="search">
<input id="find" type="search" placeholder="Search the book" aria-label="Search the book">
<button id="theme" type="button" aria-label="Dark or light">◐</button>
</div>
<ul id="found" aria-live="polite" hidden></ul>
<ul class="chapters">{"".join(items)}</ul>
</nav>
<main id="top" class="jp-Notebook">
{body}
<footer>{around}</footer>
</main>
</body>
</html>
"""
