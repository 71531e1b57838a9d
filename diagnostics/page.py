"""A page that is one file: figures, tables, definitions and provenance, and it loads nothing from anywhere.

It follows the reader's choice of light or dark, figures included, of which it holds both. It is written through an
autoescaping template, so that no title can become markup, with a content security policy that forbids whatever is
not in the file; beside its place, and moved there whole: who reads it sees the old page or the new one.
"""

from __future__ import annotations

import base64
import datetime
import importlib.metadata
import io
import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import jinja2

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

_DPI = 200  # 1400 pixels for 7 inches: two for each on a page 700 wide
_LONGEST = 400  # characters of one value of a store's provenance
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Records(Protocol):
    """A table that can give its rows as dicts, such as a pandas DataFrame."""

    def to_dict(self, orient: Any) -> Any:
        """Rows as a list of dicts for orient="records"."""
        ...


@dataclass(frozen=True)
class _Block:
    """One element of a section: its kind, which chooses the template's branch, and what it shows."""

    kind: str
    content: Any
    caption: str = ""
    number: int = 0


@dataclass
class _Section:
    """A heading, its anchor and the blocks below it."""

    title: str
    anchor: str
    blocks: list[_Block] = field(default_factory=list)


def format_value(value: Any, digits: int = 4) -> str:
    """A value as a table shows it: `digits` significant ones, thin spaces in thousands, – for what is missing.

    Numbers of numpy and 0-d arrays count as numbers; anything else is its str.
    """
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}".replace(",", "\u2009").replace("-", "−")
    if not isinstance(value, Real):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return "–" if math.isnan(number) else ("∞" if number > 0 else "−∞")
    if number and not 1e-3 <= abs(number) < 1e6:
        mantissa, power = f"{number:.{digits - 1}e}".split("e")
        return f"{mantissa} × 10{str(int(power)).translate(_SUPERSCRIPT)}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(number)))) if number else 0
    return f"{number:,.{decimals}f}".replace(",", "\u2009").replace("-", "−")


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _is_number(value: Any) -> bool:
    return isinstance(getattr(value, "item", lambda: value)() if getattr(value, "ndim", 1) == 0 else value, Real)


def _png(fig: Figure) -> str:
    """The figure in its own colours, base64."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=_DPI, facecolor="auto", bbox_inches=None, metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def provenance_of(store: xr.Dataset) -> dict[str, Any]:
    """What a dataset says of its making: title, history and the JSON `provenance`, long values cut short."""
    said = {k: store.attrs[k] for k in ("title", "institution", "source", "history") if k in store.attrs}
    try:
        found = json.loads(str(store.attrs.get("provenance", "{}")))
    except json.JSONDecodeError:
        found = {"provenance": str(store.attrs["provenance"])}
    more = found if isinstance(found, dict) else {"provenance": found}
    return {k: _short(v) for k, v in {**said, **more}.items()}


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"{value[:_LONGEST]} … ({len(value)} characters)"
    return value


class Report:
    """Sections of text, figures, tables, definitions and headline numbers, written as one HTML file.

    `title` heads the page, `summary` follows it in plain paragraphs (blank lines between them). Every method
    but `write` returns the report, so that calls can be chained; what comes before the first `section` stands
    above all of them. All text is plain: markup in it is shown, not obeyed.
    """

    def __init__(self, title: str, summary: str = "") -> None:
        if not title.strip():
            raise ValueError("a report needs a title")
        self._title = title
        self._summary = _paragraphs(summary)
        self._sections = [_Section("", "start")]
        self._provenance: dict[str, str] = {}
        self._count = {"figure": 0, "table": 0}

    def _add(self, kind: str, content: Any, caption: str = "") -> Self:
        number = 0
        if kind in self._count:
            number = self._count[kind] = self._count[kind] + 1
        self._sections[-1].blocks.append(_Block(kind, content, caption, number))
        return self

    def section(self, title: str, text: str = "") -> Self:
        """Begin a section, listed in the table of contents; `text` as for `text`."""
        self._sections.append(_Section(title, f"section-{len(self._sections)}"))
        return self.text(text)

    def text(self, text: str) -> Self:
        """Add plain paragraphs, with blank lines between them."""
        for paragraph in _paragraphs(text):
            self._add("text", paragraph)
        return self

    def figure(self, fig: Figure, caption: str) -> Self:
        """Add a figure as it is now, for a light page and a dark one; `caption` is also what a screen reader says.

        ValueError without a caption.
        """
        if not caption.strip():
            raise ValueError("a figure needs a caption: it is also its text for those who cannot see it")
        from .dark import darkened  # here, because it needs matplotlib, and who writes tables does not

        light = _png(fig)
        with darkened(fig):
            dark = _png(fig)
        width, height = (round(100 * float(inches)) for inches in fig.get_size_inches())
        return self._add("figure", {"light": light, "dark": dark, "width": width, "height": height}, caption)

    def table(
        self, rows: Sequence[Mapping[str, Any]] | Records, caption: str = "", columns: Sequence[str] | None = None
    ) -> Self:
        """Add a table: `rows` as dicts or a DataFrame (without its index), `columns` to choose and order them.

        Numbers are written by `format_value` and stand right. Raises ValueError if there are no columns, or a
        chosen one is in no row.
        """
        records = rows if isinstance(rows, Sequence) else rows.to_dict("records")
        found = list(dict.fromkeys(str(name) for row in records for name in row))
        columns = found if columns is None else list(columns)
        if not columns or (missing := [c for c in columns if records and c not in found]):
            raise ValueError(f"a table needs columns that its rows have ({found}), got {missing if columns else []}")
        body = [[format_value(row.get(c)) for c in columns] for row in records]
        numeric = [any(_is_number(row.get(c)) for row in records) for c in columns]
        return self._add("table", {"columns": columns, "body": body, "numeric": numeric}, caption)

    def facts(self, facts: Mapping[str, Any]) -> Self:
        """Add headline numbers as cards, {label: value}: numbers to three digits, or str with units."""
        return self._add("facts", {label: format_value(value, digits=3) for label, value in facts.items()})

    def definitions(self, terms: Mapping[str, str]) -> Self:
        """Add what words mean here, {term: formula, choices and source}; line breaks are kept."""
        return self._add("definitions", {term: text.strip().split("\n") for term, text in terms.items()})

    def provenance(self, entries: Mapping[str, Any]) -> Self:
        """Add how it was made, folded away at the end: versions, seeds, checkpoints; nested values as JSON."""
        for name, value in entries.items():
            nested = isinstance(value, Mapping | list | tuple)
            self._provenance[name] = (
                json.dumps(value, indent=2, default=str, ensure_ascii=False) if nested else str(value)
            )
        return self

    def html(self) -> str:
        """The whole page."""
        source = files(__package__ or "").joinpath("templates", "page.html").read_text(encoding="utf-8")
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        return environment.from_string(source).render(
            title=self._title,
            summary=self._summary,
            sections=[s for s in self._sections if s.title or s.blocks],
            provenance=self._provenance,
            written=datetime.datetime.now(datetime.UTC).strftime("%-d %B %Y, %H:%M UTC"),
            version=importlib.metadata.version("polynya"),
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to `path`, whole or not at all, and return the path; folders are made as needed."""
        path = Path(path)
        page = self.html()
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            with beside.open("x", encoding="utf-8") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        return path
