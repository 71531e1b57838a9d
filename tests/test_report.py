"""Reports: one file that parses, loads nothing, obeys no markup, and is written whole or not at all."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.image import imread

from polynya.diagnostics import Report
from polynya.diagnostics.page import format_value, provenance_of

VOID = {"meta", "img", "source", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects text, images and links of a page, and sees that every element is closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text, self.images, self.links, self.ids = [], [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs)
        if tag == "a":
            self.links.append(attrs["href"])
        if "id" in attrs:
            self.ids.append(attrs["id"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def figure():
    fig = Figure(figsize=(7, 3))
    fig.subplots().plot([1, 2, 3])
    return fig


def full(title="Twin experiment"):
    report = Report(title, "First paragraph\nof two.\n\nSecond.").facts({"RMSE": 0.4213, "uptake": "0.6 W m⁻²"})
    report.section("Maps", "About maps.").figure(figure(), "A map of heat.").figure(figure(), "A map of salt.")
    rows = [{"name": "thetao", "rmse": 0.421345, "n": 12000}, {"name": "zos", "rmse": np.float32(np.nan)}]
    report.section("Scores").table(rows, "All scores.", ["name", "rmse", "n"])
    return report.provenance({"seed": 1, "versions": {"numpy": "2.0"}})


def test_a_report_parses_and_holds_everything_once(tmp_path):
    path = full().write(tmp_path / "new" / "report.html")
    page = Page(path.read_text(encoding="utf-8"))
    text = "".join(page.text)
    for words in (
        "First paragraph of two.",
        "About maps.",
        "A map of heat.",
        "A map of salt.",
        "All scores.",
        "0.4213",
    ):
        assert text.count(words) == 1, words
    assert text.count("Twin experiment") == 2  # <title> and <h1>
    assert [i["alt"] for i in page.images] == ["A map of heat.", "A map of salt."]
    assert len(set(page.ids)) == len(page.ids)
    assert page.links == ["#section-1", "#section-2"]
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert "details" in page.tags and json.dumps({"numpy": "2.0"}, indent=2) in text
    assert "12\u2009000" in text


def test_a_report_loads_nothing():
    html = full().html()
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for image in page.images:
        head, data = image["src"].split(",", 1)
        assert head == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?://|url\(|@import|(?:src|href)=\"(?!data:|#)", without_pictures)
    assert "default-src 'none'" in html


def test_pictures_are_twice_as_fine_as_they_are_shown():
    html = Report("r").figure(figure(), "c").html()
    png = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    (shown,) = Page(html).images
    assert (width, height) == (2 * int(shown["width"]), 2 * int(shown["height"]))


def test_a_dark_page_has_dark_pictures():
    html = Report("r").figure(figure(), "c").html()
    dark, light = (
        imread(io.BytesIO(base64.b64decode(d)))[..., :3].mean() for d in re.findall(r"base64,([^\"]+)", html)
    )
    assert dark < 0.2 and light > 0.8
    assert '<source media="screen and (prefers-color-scheme: dark)"' in html


def test_definitions_keep_their_lines():
    page = Page(Report("r").definitions({"CRPS": "a formula\na <source>"}).html())
    assert {"dl", "dt", "dd"} <= set(page.tags) and page.tags.count("span") == 2
    assert "a <source>" in "".join(page.text)


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({}, {}),
        ({"title": "t", "units": "m"}, {"title": "t"}),
        ({"provenance": '{"seed": 1}'}, {"seed": 1}),
        ({"provenance": "made by hand"}, {"provenance": "made by hand"}),
        ({"provenance": "[1, 2]"}, {"provenance": [1, 2]}),
    ],
)
def test_provenance_of_a_store_is_what_it_says(attrs, expected):
    assert provenance_of(xr.Dataset(attrs=attrs)) == expected


def test_markup_is_shown_and_not_obeyed():
    evil = '<script>alert("x")</script>'
    report = Report(evil, evil).section(evil, evil).figure(figure(), evil).facts({evil: evil})
    html = report.table([{evil: evil}], evil).provenance({evil: {"a": evil}}).html()
    page = Page(html)
    assert "script" not in page.tags
    assert "<script" not in html
    assert "".join(page.text).count(evil) >= 9
    assert page.images[0]["alt"] == evil


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = full().write(tmp_path / "report.html")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("polynya.diagnostics.page.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        full("Another title").write(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_writing_replaces(tmp_path):
    for title in ("one", "two"):
        path = Report(title).write(tmp_path / "r.html")
    assert "<h1>two</h1>" in path.read_text(encoding="utf-8")


def test_tables_take_frames_and_refuse_unknown_columns():
    class Frame:
        def to_dict(self, orient):
            assert orient == "records"
            return [{"a": 1, "b": "x"}]

    page = Page(Report("r").table(Frame(), "frame").html())
    assert page.tags.count("td") == 2
    with pytest.raises(ValueError, match=r"got \['c'\]"):
        Report("r").table([{"a": 1}], "frame", ["a", "c"])
    with pytest.raises(ValueError, match="needs columns"):
        Report("r").table([], "frame")


def test_what_has_no_words_is_refused():
    with pytest.raises(ValueError, match="needs a caption"):
        Report("r").figure(figure(), "")
    with pytest.raises(ValueError, match="needs a title"):
        Report(" ")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.42134567, "0.4213"),
        (-12.3456, "−12.35"),
        (1234.56, "1\u2009235"),
        (np.int64(12345), "12\u2009345"),
        (1.2345e22, "1.234 × 10²²"),
        (-3e-5, "−3.000 × 10⁻⁵"),
        (0.0, "0"),
        (float("nan"), "–"),
        (None, "–"),
        (True, "yes"),
        (np.bool_(False), "no"),
        (np.array(2.5), "2.500"),
        ("<b>", "<b>"),
        (float("-inf"), "−∞"),
    ],
)
def test_numbers_as_tables_show_them(value, expected):
    assert format_value(value) == expected
