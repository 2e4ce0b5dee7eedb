"""What a report says, apart from how it looks: sections of paragraphs, lists, tables and pictures; and it as Markdown.

Texts may hold `code` between backticks and **bold** between two stars; nothing else in them is markup.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bullets:
    """A list, an item a line."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class KeyFigures:
    """The few figures that a reader looks for first: (what, figure, what it is of) each."""

    items: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row.

    Attributes:
        rows: each as long as the header.
        caption: above the table, "" for none.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"rows must have {len(self.header)} cells as the header has, got {row}")


@dataclass(frozen=True)
class Picture:
    """A picture of the report's folder.

    Attributes:
        file: its path from that folder, with forward slashes.
        text: what it shows, in words.
        chart: drawn on white, as figures are and slices of a scan are not.
    """

    file: str
    text: str
    chart: bool = True


Block = str | Bullets | KeyFigures | Table | Picture


@dataclass(frozen=True)
class Section:
    """A headline and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A page."""

    title: str
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """In the order of the page."""
        return tuple(block for section in self.sections for block in section.blocks if isinstance(block, Picture))


def to_markdown(document: Document) -> str:
    """The page as Markdown; pictures are linked."""
    parts = [f"# {document.title}"]
    for section in document.sections:
        parts += [f"## {section.title}", *(_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case str():
            return block
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case KeyFigures(items):
            return _table(("", "", "of"), tuple((what, f"**{figure}**", of) for what, figure, of in items))
        case Table(header, rows, caption):
            return (f"{caption}\n\n" if caption else "") + _table(header, rows)
        case Picture(file, text):
            return f"![{text}]({file.replace(' ', '%20')})"
    raise TypeError(f"block must be a text, list, table or picture, got {type(block).__name__}")


def _table(header: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
