"""The tables of an evaluation, in the layout of the paper and beyond it, as Markdown and as rows of a CSV file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from scripts.counterfactual import KINDS
from scripts.evaluation.correction import MeasuredLine, correction_sentence
from scripts.evaluation.images import QUALITIES
from scripts.evaluation.interpretability import MODEL

PAPER_COLUMNS = {"scc": "SCC", "modularity": "Modularity", "sap": "SAP", "mig": "MIG"}
SOUND_COLUMNS = {"r2": "R²", "scc": "SCC", "partial_scc": "partial SCC", "dmig": "DMIG"}
ANSWER_COLUMNS = {
    "slope": "slope",
    "r2": "R²",
    "error": "error (mL)",
    "monotonicity": "monotonicity",
    "drift": "drift",
    "reversibility": "reversibility (mL)",
    "composition": "composition (mL)",
    "idle": "re-encoding (mL)",
}
ALL = "mean"  # of all attributes, in the place of one
ERROR_COLUMNS = {"error": "error", "bias": "bias", "slope": "slope"}


class Table(NamedTuple):
    """A table of values with intervals.

    Args:
        key: short name, for the CSV file.
        title: for people.
        note: what the reader must know.
        rows: row -> column -> ``{value, low, high}`` or ``{"undefined": reason}``; all rows have the same columns.
    """

    key: str
    title: str
    note: str
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]


def all_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """The tables of one ``metrics.json``, in reading order."""
    description, interpretability = metrics["description"], metrics["interpretability"]
    count = metrics["subjects"][description["section"]]
    who = f"{description['method']}, seed {description['seed']}, {count} {description['section']} subjects"
    tables = [
        image_table(metrics["images"], who, description),
        anatomy_table(metrics.get("anatomy", {}), who),
        paper_table(interpretability["paper"], who),
        attribute_table(interpretability["paper"][MODEL], who),
        sound_table(interpretability["sound"], who, metrics["subjects"]["training"]),
        sound_attribute_table(interpretability["sound"][MODEL], description),
        realism_table(metrics["realism"], description),
        *whatif_tables(metrics.get("faithfulness")),
    ]
    return [table for table in tables if table.rows]


def image_table(images: Mapping[str, Any], who: str, description: Mapping[str, Any]) -> Table:
    """Image quality in the layout of the paper's Table 1."""
    training = description["training"]
    trained = f"trained with {training.get('trunk')}" if training.get("perceptual_weight") else "trained without one"
    note = (
        f"{who}. Reconstructions from mean codes; means over subjects. SSIM: 7x7 window, range 1; PSNR in dB; LPIPS: "
        f"{description['lpips_net']} trunk ({trained}), comparable with no other trunk; MSE of values that are not "
        "clipped."
    )
    rows = {group: {quality: values[quality] for quality in QUALITIES} for group, values in images.items()}
    return Table("images", "Reconstruction (layout of Table 1)", note, rows)


def anatomy_table(anatomy: Mapping[str, Any], who: str) -> Table:
    """Dice of decoded occupancy maps; no rows where the view has none."""
    note = f"{who}. Dice of decoded maps against those of the masks, over all slices; means over subjects."
    return Table("anatomy", "Decoded anatomy", note, anatomy)


def paper_table(paper: Mapping[str, Any], who: str) -> Table:
    """The paper's protocol in the layout of its Table 2."""
    note = (
        f"{who}. Paper protocol, to compare with published tables: dimensions are chosen, and lines fitted, on the "
        "very subjects that are scored. Published figures are of sampled z. Read a value only beside those of noise, "
        "of a mere size axis and of the oracle."
    )
    groups = [group for row in paper.values() for group in row.get("interpretability", {}) if group != "each"]
    rows = {}
    for name, row in paper.items():
        rows[name] = {title: row.get(key, row) for key, title in PAPER_COLUMNS.items()}
        rows[name] |= {
            f"Interp. {group}": row.get("interpretability", {}).get(group, row) for group in dict.fromkeys(groups)
        }
    return Table("paper", "Interpretability, paper protocol (layout of Table 2)", note, rows)


def attribute_table(row: Mapping[str, Any], who: str) -> Table:
    """Interpretability per attribute, in the layout of the paper's Appendix B."""
    each = row.get("interpretability", {}).get("each", {})
    rows = {
        name: {
            "dimension": {"text": "n/a" if values.get("undefined") else str(values["dimension"])},
            "Interpretability": values,
        }
        for name, values in each.items()
    }
    note = (
        f"{who}. Paper protocol: the dimension with the most mutual information, counted from 0, and the R² of a line."
    )
    return Table("attributes", "Interpretability per attribute (layout of Appendix B)", note, rows)


def sound_table(sound: Mapping[str, Any], who: str, training: int) -> Table:
    """The sound protocol of every row."""
    note = (
        f"{who}. Sound protocol: mean codes, each attribute on its own dimension, lines and trees fitted on {training} "
        "training subjects and scored on the others. Read partial SCC and DMIG beside the row of a mere size axis. DCI "
        "counts an attribute by the R² of its trees. Intervals are of the subjects, not of another training."
    )
    rows = {}
    for name, row in sound.items():
        dci = row.get("dci", row)
        rows[name] = {title: row.get(key, row) for key, title in SOUND_COLUMNS.items()}
        rows[name] |= {
            "DCI disentanglement": dci,
            "DCI completeness": dci.get("completeness", dci),
            "DCI informativeness": dci.get("informativeness", dci),
            "active units": row.get("active_units", row),
        }
    return Table("sound", "Interpretability, sound protocol", note, rows)


def sound_attribute_table(row: Mapping[str, Any], description: Mapping[str, Any]) -> Table:
    """The sound protocol per attribute."""
    names = description["data"]["attributes"]
    rows = {
        name: {"dimension": {"text": str(dimension)}}
        | {title: row.get(key, row).get("per_attribute", {}).get(name, row) for key, title in SOUND_COLUMNS.items()}
        for name, dimension in zip(names, description["dimensions"], strict=True)
    }
    how = (
        "that was regularized for it" if description["model"]["regularize"] else "that follows it in training subjects"
    )
    return Table("sound_attributes", "Sound protocol per attribute", f"Each attribute on the dimension {how}.", rows)


def realism_table(realism: Mapping[str, Any], description: Mapping[str, Any]) -> Table:
    """Realism of generated images beside that of training images, and memorization."""
    note = (
        f"Features of {description['feature_trunk']}; {description['generated_samples']} images from the prior. A "
        "perfect generator has the second column's value. Memorization: share of generated images nearer to a training "
        "image than nearly all test images are, and what to expect of that share."
    )
    rows = {
        name: {"generated": realism[key], "training images": realism[f"{key}_reference"]}
        for key, name in (("kid", "KID"), ("frechet", "Fréchet distance"))
    }
    copies = realism["memorization"]
    expected = "n/a" if copies.get("undefined") else f"expected {number(copies['expected'])}"
    rows["memorization"] = {"generated": copies, "training images": {"text": expected}}
    return Table("realism", "Realism of generated images", note, rows)


def whatif_tables(found: Mapping[str, Any] | None) -> list[Table]:
    """Whether counterfactuals are true, after what the instruments are worth; none where that was not measured."""
    return [] if found is None else [instrument_table(found), answer_table(found), preservation_table(found)]


def instrument_table(found: Mapping[str, Any]) -> Table:
    """What the instruments measure of hearts whose volumes are known."""
    note = (
        "mL. Error: mean absolute difference of measured and true value; bias: mean difference; slope: of measured on "
        "true values, below 1 for an instrument that draws hearts to the mean and will find less of a change, too. "
        "Segmentation and regressor have learned from scans of the training subjects alone. The self-report are the "
        "maps that are decoded with the image (of a scan, those of its mask): no proof of what an image shows."
    )
    for instrument, lines in found.get("corrected", {}).items():
        fitted = {name: MeasuredLine(**line) for name, line in lines.items()}
        note += f" The {instrument} {correction_sentence(fitted, list(found['requests']))}"
    rows = {
        f"{name}, {instrument}": {
            f"{title}, {images}": of_attribute(values, name)
            for images, figures in measured.items()
            for title, values in ((title, figures[key]) for key, title in ERROR_COLUMNS.items())
        }
        for name in [ALL, *found["requests"]]
        for instrument, measured in found["instruments"].items()
    }
    return Table("whatif_instruments", "What the instruments are worth", note, rows)


def answer_table(found: Mapping[str, Any]) -> Table:
    """Measured against requested changes."""
    changes, trips = (", ".join(f"{value:+g}" for value in found[key]) for key in ("changes", "round_trip"))
    counts = "; ".join(
        f"{name} {count['allowed']} of {count['asked']} ({count['met']})" for name, count in found["requests"].items()
    )
    note = (
        f"{found['subjects']} subjects, each attribute asked for {changes} mL ({KINDS[found['kind']]}). "
        "Slope, R²: of the line of measured on requested changes; 1 is perfect. Error: mean absolute difference of "
        "both. Monotonicity: share of neighboring requests in whose order the measured value rises. Drift: mean "
        "absolute change of the other attributes that was not requested, in parts of the request. Reversibility: what "
        f"is left of a request ({trips} mL) and its opposite; composition: difference of two half steps and one; both "
        "encode the decoded images and maps again, which alone makes the change of 're-encoding'. Compare with the "
        "instruments' own errors above. Allowed requests, in the trained range and possible, and in brackets of "
        f"how many the model itself says that the asked attribute is within 1 mL: {counts}."
    )
    rows = {
        f"{name}, {instrument}": {
            title: answers[key].get("per_attribute", {}).get(name, answers[key])
            for key, title in ANSWER_COLUMNS.items()
        }
        for name in [ALL, *found["requests"]]
        for instrument, answers in found["answers"].items()
    }
    return Table("faithfulness", "Counterfactuals: measured against requested changes", note, rows)


def of_attribute(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The value of one attribute, or the mean of all."""
    return values if name == ALL else values["per_attribute"][name]


def preservation_table(found: Mapping[str, Any]) -> Table:
    """What a request should leave as it is."""
    note = (
        "LPIPS outside the heart: of a changed and the unchanged image, and for comparison of a reconstruction and its "
        "scan, in the slices that pictures show and for the requests that are taken back. Dice of the decoded maps and "
        "the segmentation of the decoded image, with and without a request."
    )
    changed, unchanged = found["identity"]["changed"], found["identity"]["reconstruction"]
    rows = {f"LPIPS outside, {name}": {"changed": value} for name, value in changed["per_attribute"].items()}
    rows["LPIPS outside, mean"] = {"changed": changed, "unchanged": unchanged}
    for name, value in found["agreement"].get("changed", {}).get("per_attribute", {}).items():
        before = found["agreement"]["unchanged"]["per_attribute"][name]
        rows[f"Dice, {name}"] = {"changed": value, "unchanged": before}
    return Table("whatif_preserved", "Counterfactuals: what stays", note, rows)


def to_markdown(table: Table) -> str:
    """A heading, the note and the table; reasons of undefined values stand below."""
    rows = {name: {column: cell(value) for column, value in row.items()} for name, row in table.rows.items()}
    lines = [f"## {table.title}", "", table.note, "", markdown_table(rows)]
    reasons = sorted(
        {value["undefined"] for row in table.rows.values() for value in row.values() if value.get("undefined")}
    )
    lines += [""] * bool(reasons) + [f"n/a: {reason.rstrip('.')}." for reason in reasons]
    return "\n".join(lines) + "\n"


def markdown_table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Row -> column -> text as a Markdown table; what a row lacks is ``n/a``."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    lines += [f"| {name} | {' | '.join(row.get(column, 'n/a') for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)


def table_rows(table: Table) -> Iterator[dict[str, Any]]:
    """One row per value, for a CSV file."""
    for name, row in table.rows.items():
        for column, value in row.items():
            known = {key: value.get(key, "") for key in ("value", "low", "high", "undefined")}
            yield {"table": table.key, "row": name, "column": column, **known, "text": value.get("text", "")}


def cell(value: Mapping[str, Any]) -> str:
    """A value with its interval, as people read it."""
    if "text" in value:
        return value["text"]
    if value.get("undefined") or not math.isfinite(value.get("value", math.nan)):
        return "n/a"
    return f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"


def number(value: float) -> str:
    """About three significant digits; rounding errors are 0."""
    if abs(value) < 1e-9:
        return "0"
    return f"{value:.3g}" if abs(value) < 0.1 or abs(value) >= 100 else f"{value:.{2 if abs(value) >= 10 else 3}f}"
