"""Documents as Markdown and as a page: nothing is fetched, nothing breaks out of its cell."""

import struct
from html.parser import HTMLParser

import pytest

from ctsam3d.evaluation.report_document import Bullets, Document, KeyFigures, Picture, Section, Table, to_markdown
from ctsam3d.evaluation.report_html import to_html

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 500, 200)
VOID = {"meta", "img", "link", "br", "hr", "input", "wbr"}
DOCUMENT = Document(
    "A <title>",
    (
        Section("First & last", ("Some `code` and **bold** & <b>none</b>.", Bullets(("one", "two")))),
        Section(
            "Figures",
            (
                KeyFigures((("DSC", "0.9", "all"),)),
                Table(("name", "value"), (("a|b <script>", "**1**"),), "A caption."),
                Picture("sub folder/p.png", 'a "picture"'),
            ),
        ),
    ),
)


class Reader(HTMLParser):
    """Tags in order, attributes, texts; fails where tags do not close as they opened."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


def test_markdown_has_every_block():
    assert to_markdown(DOCUMENT) == (
        "# A <title>\n\n## First & last\n\nSome `code` and **bold** & <b>none</b>.\n\n- one\n- two\n\n## Figures\n\n"
        "|  |  | of |\n| --- | ---: | ---: |\n| DSC | **0.9** | all |\n\n"
        "A caption.\n\n| name | value |\n| --- | ---: |\n| a\\|b <script> | **1** |\n\n"
        '![a "picture"](sub%20folder/p.png)\n'
    )


def test_a_page_needs_nothing_else_and_runs_nothing():
    page = read(to_html(DOCUMENT, {"sub folder/p.png": PNG}))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith(("data:image/png;base64,iVBORw0KGgo", "#s"))
    assert page.tags.count("b") == 0 and page.tags.count("strong") == 2 and page.tags.count("code") == 1
    assert "a|b <script>" in page.text and "<b>none</b>" in page.text and "A <title>" in page.text
    assert {("width", "500"), ("height", "200"), ("style", "min-width: 300px")} <= set(page.attributes)
    assert ("alt", 'a "picture"') in page.attributes and ("scope", "row") in page.attributes
    assert "@import" not in page.text and "url(" not in page.text  # of the style


def test_a_page_is_for_phones_dark_rooms_and_paper():
    text = to_html(DOCUMENT, {"sub folder/p.png": PNG})
    for part in ("width=device-width", "prefers-color-scheme: dark", "@media print", '<html lang="en">'):
        assert part in text


def test_a_picture_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"sub folder/p\.png"):
        to_html(DOCUMENT, {})
    with pytest.raises(ValueError, match=r"PNG files, sub folder/p\.png"):
        to_html(DOCUMENT, {"sub folder/p.png": b"GIF89a"})


def test_rows_are_as_long_as_the_header():
    with pytest.raises(ValueError, match=r"2 cells .*\('a',\)"):
        Table(("x", "y"), (("a",),))
