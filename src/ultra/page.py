"""HTML pages that stand alone: no script, nothing fetched, all text escaped, pictures inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse }
td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child { text-align: left } img { max-width: 100% }
pre { white-space: pre-wrap; background: #f6f6f6; padding: 1rem }
"""


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


def preformatted(text: str) -> str:
    """Text with its line breaks."""
    return f"<pre>{html.escape(text)}</pre>"


def folded(title: str, text: str) -> str:
    """Text that is shown on demand."""
    return f"<details><summary>{html.escape(title)}</summary>{preformatted(text)}</details>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    return f"<table>{cells(header, 'th')}{''.join(cells(row, 'td') for row in rows)}</table>"


def image(path: Path, caption: str) -> str:
    """A picture (PNG), inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(caption, quote=True)}" src="data:image/png;base64,{data}"></p>'
