"""A report as one HTML file that needs nothing else: no script, nothing fetched, pictures inside.

It is read on a phone (wide tables and figures scroll by themselves, the first column stays), in the dark (figures are
inverted, slices of scans are not) and on paper.
"""

from __future__ import annotations

import base64
import html
import re
import struct
from collections.abc import Mapping

from ctsam3d.evaluation.report_document import Block, Bullets, Document, KeyFigures, Picture, Section, Table

_LEAST = 0.6  # of a chart's pixels, below which its text is hard to read and it scrolls instead
_STYLE = """
:root { color-scheme: light dark; --text: #1d2329; --soft: #59636e; --line: #d5dae0; --back: #fff; --panel: #f4f6f8;
  --strong: #0b5a9e; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --soft: #9aa5b1; --line: #3a424b; --back: #14181c;
  --panel: #1e242a; --strong: #6bb5f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem) 4rem; max-width: 76rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; -webkit-text-size-adjust: 100%; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; }
ul { padding-left: 1.2rem; margin: .5rem 0; }
code { font-size: .9em; background: var(--panel); padding: .05em .3em; border-radius: 3px; }
a { color: var(--strong); }
nav { font-size: .9rem; margin: 1rem 0; }
nav a { margin-right: .9rem; white-space: nowrap; display: inline-block; padding: .15rem 0; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
dl div { background: var(--panel); border-radius: 6px; padding: .6rem .8rem; }
dt { font-size: .85rem; color: var(--soft); }
dd { margin: 0; }
dd.figure { font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
dd.of { font-size: .8rem; color: var(--soft); line-height: 1.3; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .22rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; white-space: normal;
  overflow-wrap: normal; min-width: 4.2rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--back); font-weight: 500;
  white-space: normal; overflow-wrap: break-word; min-width: min(9.5rem, 32vw); max-width: min(20rem, 45vw); }
figure { margin: .8rem 0; }
figcaption { font-size: .85rem; color: var(--soft); }
figure img { display: block; max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { figure.chart img { filter: invert(.92) hue-rotate(180deg); } }
@media print { :root { --text: #000; --soft: #444; --line: #bbb; --back: #fff; --panel: #f2f2f2; --strong: #000; }
  body { font-size: 10pt; max-width: none; padding: 0; } nav { display: none; } .wide { overflow: visible; }
  table { font-size: 7.5pt; } thead { display: table-header-group; } tr, figure, dl div { break-inside: avoid; }
  h2 { break-after: avoid; } th, td { padding: .1rem .35rem; white-space: normal; }
  th:first-child { position: static; } figure img { max-height: 24cm; width: auto; }
  figure.chart img { min-width: 0 !important; filter: none; } }
"""


def to_html(document: Document, images: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        images: the PNG of each picture, by its file.

    Raises:
        ValueError: a picture without its PNG, or one that is none.
    """
    missing = [picture.file for picture in document.pictures if picture.file not in images]
    if missing:
        raise ValueError(f"images must hold every picture of the document, {missing} are not there")
    title = html.escape(document.title)
    links = "".join(f'<a href="#s{n}">{html.escape(s.title)}</a>\n' for n, s in enumerate(document.sections))
    body = "\n".join(_section(n, section, images) for n, section in enumerate(document.sections))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<nav aria-label="Sections">{links}</nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _section(number: int, section: Section, images: Mapping[str, bytes]) -> str:
    blocks = "\n".join(_block(block, images) for block in section.blocks)
    return f'<section id="s{number}">\n<h2>{html.escape(section.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block, images: Mapping[str, bytes]) -> str:
    match block:
        case str():
            return f"<p>{_inline(block)}</p>"
        case Bullets(items):
            return "<ul>\n" + "\n".join(f"<li>{_inline(item)}</li>" for item in items) + "\n</ul>"
        case KeyFigures(items):
            return "<dl>\n" + "\n".join(_card(*map(_inline, item)) for item in items) + "\n</dl>"
        case Table():
            return _table(block)
        case Picture(file, text, chart):
            data, (width, height) = base64.b64encode(images[file]).decode("ascii"), _size(images[file], file)
            kind, least = (' class="chart"', f' style="min-width: {_LEAST * width:.0f}px"') if chart else ("", "")
            size = f'width="{width}" height="{height}"{least}'
            image = f'<img src="data:image/png;base64,{data}" {size} alt="{html.escape(text)}">'
            return f'<figure{kind}><div class="wide">{image}</div><figcaption>{_inline(text)}</figcaption></figure>'
    raise TypeError(f"block must be a text, list, table or picture, got {type(block).__name__}")


def _size(png: bytes, file: str) -> tuple[int, int]:
    """Width and height in pixels, from the header."""
    if len(png) < 24 or not png.startswith(b"\x89PNG"):
        raise ValueError(f"images must be PNG files, {file} is none")
    return struct.unpack(">II", png[16:24])


def _card(what: str, figure: str, of: str) -> str:
    return f'<div><dt>{what}</dt><dd class="figure">{figure}</dd><dd class="of">{of}</dd></div>'


def _table(table: Table) -> str:
    caption = f"<caption>{_inline(table.caption)}</caption>" if table.caption else ""
    head = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in table.header)
    rows = []
    for first, *others in table.rows:
        cells = "".join(f"<td>{_inline(cell)}</td>" for cell in others)
        name = _inline(first).replace("_", "_<wbr>")  # where the names of structures may break
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    body = "\n".join(rows)
    return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _inline(text: str) -> str:
    """Escaped, with the two kinds of markup that texts may hold."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
