"""From tables, figures and hearts to one HTML file that asks no server for anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from scripts.evaluation.tables import Table, cell
from scripts.report_page.pictures import figure_uri

FOLDER = Path(__file__).parent
TEMPLATE, STYLE, SCRIPT = "page.html", "page.css", "page.js"


class FigureText(NamedTuple):
    """What stands beside a figure.

    Args:
        title: heading.
        text: what it shows, also for those who cannot see it.
    """

    title: str
    text: str


FIGURES = {
    "reconstructions": FigureText(
        "Reconstructions", "Scans of held-out subjects, what the model makes of them, and the difference."
    ),
    "walks": FigureText(
        "Walks", "What moving each regularized dimension from −2 to +2 standard deviations does to the mean heart."
    ),
    "scatter": FigureText("Codes and attributes", "Each attribute against its dimension, training and test subjects."),
    "correlations": FigureText(
        "Partial correlations", "Each dimension with each attribute, the other attributes held: the diagonal counts."
    ),
    "whatif": FigureText(
        "Counterfactuals", "Changes that instruments measure in decoded hearts, against those that were requested."
    ),
    "samples": FigureText("Generated hearts", "Hearts drawn from the prior above the training scan nearest to each."),
    "curves": FigureText("Training curves", "Losses and interpretability over the epochs of the training."),
}


def render(
    title: str,
    facts: Mapping[str, str],
    tables: Sequence[Table],
    figures: Sequence[Mapping[str, Any]],
    hearts: Mapping[str, Any] | None = None,
    absent: str = "",
    cautions: Sequence[str] = (),
) -> str:
    """The page.

    Args:
        title: of the page.
        facts: what was judged and how, name -> value.
        tables: in reading order.
        figures: as ``figure_parts`` gives them.
        hearts: as ``HeartFrames.page`` gives it; None where no heart can be changed.
        absent: why not.
        cautions: what everybody has to know of the model before anything else.

    Returns:
        HTML. Every text in it is escaped.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(
        title=title,
        facts=facts,
        tables=[table_parts(table) for table in tables],
        figures=figures,
        hearts=hearts,
        absent=absent,
        cautions=cautions,
        style=Markup((FOLDER / STYLE).read_text(encoding="utf-8")),
        script=Markup((FOLDER / SCRIPT).read_text(encoding="utf-8")),
    )


def table_parts(table: Table) -> dict[str, Any]:
    """A table as texts: columns, rows of (value, interval), and the reasons of what is undefined."""
    columns = list(dict.fromkeys(column for row in table.rows.values() for column in row))
    reasons = {value.get("undefined") for row in table.rows.values() for value in row.values()}
    return {
        "key": table.key,
        "title": table.title,
        "note": table.note,
        "columns": columns,
        "rows": {name: [value_parts(row.get(column)) for column in columns] for name, row in table.rows.items()},
        "reasons": sorted(reason.rstrip(".") for reason in reasons if reason),
    }


def value_parts(value: Mapping[str, Any] | None) -> tuple[str, str]:
    """A value and its interval, as ``tables.cell`` writes them."""
    text, bracket, interval = ("n/a" if value is None else cell(value)).partition(" [")
    return text, (bracket + interval).strip()


def figure_parts(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Figures in reading order, those that nobody has described last, by name."""
    known = list(FIGURES)
    ordered = sorted(paths, key=lambda path: (known.index(path.stem) if path.stem in known else len(known), path.stem))
    found = []
    for path in ordered:
        title, text = FIGURES.get(path.stem, FigureText(path.stem.replace("_", " ").capitalize(), ""))
        uri, width, height = figure_uri(path)
        found.append({"key": path.stem, "title": title, "text": text, "source": uri, "width": width, "height": height})
    return found
