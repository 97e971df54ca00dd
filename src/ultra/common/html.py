"""HTML pages that stand alone: no script, nothing fetched, all text escaped, pictures inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem } li { margin: .3rem 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th { vertical-align: bottom; border-bottom-color: #888 } tbody tr:hover { background: #f6f6f6 }
td:not(.text), td:first-child { white-space: nowrap }
td:first-child, th:first-child, .text { text-align: left } img { max-width: 100% }
pre { white-space: pre-wrap; background: #f6f6f6; padding: 1rem }
"""
_TEXT = ' class="text"'


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of parts that are HTML already."""
    name = html.escape(title)
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{name}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>{_STYLE}</style>
<h1>{name}</h1>
{body}
</html>
"""


def heading(text: str) -> str:
    """A heading within the page."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def preformatted(text: str) -> str:
    """Text with its line breaks."""
    return f"<pre>{html.escape(text)}</pre>"


def folded(title: str, text: str) -> str:
    """Text that is shown on demand."""
    return f"<details><summary>{html.escape(title)}</summary>{preformatted(text)}</details>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns that hold words are aligned to the left."""
    words = [any(row[k][:1].isalpha() for row in rows) for k in range(len(header))]

    def cells(row: Sequence[str], tag: str) -> str:
        parts = zip(row, words, strict=True)
        return "<tr>" + "".join(f"<{tag}{_TEXT * text}>{html.escape(cell)}</{tag}>" for cell, text in parts) + "</tr>"

    body = "".join(cells(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{cells(header, "th")}</thead><tbody>{body}</tbody></table></div>'


def image(path: Path, caption: str) -> str:
    """A picture (PNG), inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(caption, quote=True)}" src="data:image/png;base64,{data}"></p>'
