"""The files of an evaluation: metrics.json, the tables as Markdown and CSV, one row per subject, and the figures.

None of them names a subject: see ``scripts.cohort.privacy``.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from scripts.charts import change_figure, correlation_figure, curves_figure, read_scalars, scatter_figure
from scripts.checkpoint import save
from scripts.evaluation.faithfulness import Answers, Faithfulness, own
from scripts.evaluation.images import dice_summary, quality_summary
from scripts.evaluation.interpretability import MODEL, CodeRow, both_protocols, code_rows
from scripts.evaluation.samples import GeneratedSamples, SamplePairs
from scripts.evaluation.tables import all_tables, table_rows, to_markdown
from scripts.figures import reconstruction_figure, samples_figure, traversal_figure
from scripts.metrics import partial_correlations, spearman
from scripts.metrics.preconditions import LEAST_SUBJECTS
from scripts.networks import VariationalAutoencoder
from scripts.storage import atomic_path, output_folder, write_csv, write_json
from scripts.views import View

METHODS = {
    ("introspective", True): "AR-SIVAE",
    ("introspective", False): "SIVAE",
    ("vae", True): "Attri-VAE",
    ("vae", False): "β-VAE",
}


METRICS_FILE, ANSWERS_FILE, PAGE_FILE = "metrics.json", "whatif.csv", "report.html"


def method_name(family: str, regularize: bool) -> str:
    """What the paper calls a method."""
    return METHODS[family, bool(regularize)]


def refuse_overlap(training: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]], section: str) -> None:
    """Raise ValueError when a model would be judged on subjects that it, or a line through its codes, has learned from.

    Args:
        training, judged: items of a datalist.
        section: that of the judged.
    """
    both = {item["subject"] for item in training} & {item["subject"] for item in judged}
    if both:
        raise ValueError(
            f"{len(both)} of {len(judged)} subjects of section '{section}' are training subjects. A model is judged on "
            "unseen ones: set --section to test or validation."
        )


class EvaluationReport:
    """Compute and write everything once the test and training subjects have gone through the network.

    Args:
        folder: gets ``metrics.json``, ``tables.md``, ``tables.csv``, ``subjects.csv``, ``examples.pt`` (images and
            reconstructions, for a study to compare methods) and ``figures``.
        description: of the run: goes into metrics.json as it is.
        training, test: the handlers of each pass by name: ``records``, ``features``, ``predictions`` and, of the test,
            ``quality`` and ``examples``.
        network: the model.
        samples: draws from the prior.
        tensorboard_dir: of the training, for its curves; there are none where it holds no log.
        faithfulness: measures counterfactuals, whose numbers then go into ``whatif.csv``; None leaves them out.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        description: Mapping[str, Any],
        training: Mapping[str, Any],
        test: Mapping[str, Any],
        network: VariationalAutoencoder,
        samples: GeneratedSamples,
        tensorboard_dir: str | os.PathLike,
        faithfulness: Faithfulness | None = None,
    ) -> None:
        self.folder, self.description = Path(folder), dict(description)
        self.training, self.test, self.network, self.samples = training, test, network, samples
        self.tensorboard_dir, self.faithfulness = Path(tensorboard_dir), faithfulness
        self.warmup_epochs: int = description["training"].get("warmup_epochs", 0)
        self.names: list[str] = list(description["data"]["attributes"])
        self.view = View.of(description["data"])
        self.seed: int = description["seed"]

    def write(self) -> None:
        """Write all files and print where they are. ``metrics.json`` comes last: where it is, all others are.

        What an earlier evaluation has shown goes first, so that nothing of another model stands beside these metrics.
        """
        files = (self.folder / name for name in (METRICS_FILE, ANSWERS_FILE, PAGE_FILE))
        for earlier in (*files, *(self.folder / "figures").glob("*.png")):
            earlier.unlink(missing_ok=True)
        codes, realism, pairs = self.code_rows(), *self.judge_samples()
        metrics = self.measure(codes) | {"realism": realism}
        figures = self.figures(codes[MODEL], pairs)
        if self.faithfulness is not None:
            records = self.training["records"], self.test["records"]
            metrics["faithfulness"], answers = self.faithfulness.measure(*records)
            self.write_answers(answers)
            figures = itertools.chain(figures, [("whatif", answers_figure(answers))])
        self.write_tables(metrics)
        self.write_subjects()
        examples = self.test["examples"]
        save({"images": examples.images, "reconstructions": examples.reconstructions}, self.folder / "examples.pt")
        for name, figure in figures:
            with atomic_path(output_folder(self.folder / "figures") / f"{name}.png") as part:
                figure.savefig(part)
        write_json(self.folder / METRICS_FILE, without_nan(metrics))
        count = len(self.test["records"].pseudonyms)
        print(f"Evaluation of {count} subjects: {self.folder / 'tables.md'}")
        if count < LEAST_SUBJECTS:
            print(f"Caution: most metrics of codes are undefined, since they take at least {LEAST_SUBJECTS} subjects.")

    def code_rows(self) -> dict[str, CodeRow]:
        """Codes of the model and of the rows beside it."""
        return code_rows(
            self.training["records"],
            self.test["records"],
            self.description["model"]["regularize"],
            self.description["size_error"],
            (self.training["predictions"].values, self.test["predictions"].values),
            self.seed,
        )

    def judge_samples(self) -> tuple[dict[str, dict], SamplePairs]:
        """Realism of generated images, and the pairs to show."""
        return self.samples.judge(self.training["features"].values, self.test["features"].values)

    def measure(self, codes: Mapping[str, CodeRow]) -> dict[str, Any]:
        """The content of ``metrics.json`` but for the realism."""
        training, test = self.training["records"], self.test["records"]
        found = {"dimensions": codes[MODEL].dimensions.tolist(), "signs": codes[MODEL].signs.tolist()}
        return {
            "description": self.description | found,
            "subjects": {"training": len(training.pseudonyms), self.description["section"]: len(test.pseudonyms)},
            "images": quality_summary(self.test["quality"].rows, self.view.phases, self.seed),
            "anatomy": dice_summary(self.test["quality"].rows, self.view.phases, self.seed),
            "interpretability": both_protocols(codes, training.attributes, test.attributes, self.names, self.seed),
        }

    def write_tables(self, metrics: Mapping[str, Any]) -> None:
        """tables.md to read, tables.csv to compute with."""
        tables = all_tables(metrics)
        with atomic_path(self.folder / "tables.md") as part:
            part.write_text("\n".join(to_markdown(table) for table in tables))
        long = [row for table in tables for row in table_rows(table)]
        write_csv(self.folder / "tables.csv", long, list(long[0]))

    def write_subjects(self) -> None:
        """subjects.csv: section, image quality, attributes and mean codes of every subject."""
        rows = []
        for section, handlers in ((self.description["section"], self.test), ("training", self.training)):
            records = handlers["records"]
            quality = handlers["quality"].rows if "quality" in handlers else [{}] * len(records.pseudonyms)
            for number, measured, attributes, codes in zip(
                records.pseudonyms, quality, records.attributes, records.codes, strict=True
            ):
                values = dict(zip(self.names, attributes, strict=True)) | {f"z{k}": z for k, z in enumerate(codes)}
                known = {key: f"{value:.7g}" for key, value in (measured | values).items() if not math.isnan(value)}
                rows.append({"pseudonym": number, "section": section, **known})
        columns = ["pseudonym", "section", *self.test["quality"].rows[0], *self.names]
        columns += [f"z{k}" for k in range(self.network.latent_dim)]
        write_csv(self.folder / "subjects.csv", by_pseudonym(rows), columns)

    def write_answers(self, answers: Answers) -> None:
        """whatif.csv: what each instrument measured of each request to each subject."""
        columns = ["pseudonym", "attribute", "requested", "instrument", *answers.names]
        rows = by_pseudonym(answers.rows(self.test["records"].pseudonyms))
        write_csv(self.folder / ANSWERS_FILE, rows, columns)

    @property
    def relation(self) -> str:
        """What joins an attribute to its dimension."""
        return "is regularized for" if self.description["model"]["regularize"] else "follows best in training subjects"

    def labels(self, codes: CodeRow) -> list[str]:
        """Name of each attribute's dimension, with the sign by which it was turned."""
        pairs = zip(codes.dimensions, codes.signs, strict=True)
        return [f"{'−' if sign < 0 else ''}z{dimension}" for dimension, sign in pairs]

    def figures(self, codes: CodeRow, pairs: SamplePairs) -> Iterator[tuple[str, Figure]]:
        """Name and figure, one at a time."""
        training, test, examples = self.training["records"], self.test["records"], self.test["examples"]
        method = self.description["method"]
        if len(examples.images):
            pictures = {method: examples.reconstructions}
            names = [str(pseudonym) for pseudonym in test.pseudonyms[: len(examples.images)]]
            yield "reconstructions", reconstruction_figure(examples.images, pictures, self.view, names)
        if self.description["model"]["regularize"]:
            mean_codes = torch.as_tensor(training.codes, dtype=torch.float32, device=device_of(self.network))
            self.network.eval()
            yield (
                "walks",
                traversal_figure(
                    self.network, mean_codes, self.names, self.view, spearman(test.codes, test.attributes)
                ),
            )
        own = [array[:, codes.dimensions] for array in (codes.training, codes.test)]
        yield (
            "scatter",
            scatter_figure(own[0], training.attributes, own[1], test.attributes, self.names, labels=self.labels(codes)),
        )
        partial = partial_correlations(own[1], test.attributes)
        yield "correlations", correlation_figure(partial, self.names, self.labels(codes), self.relation)
        with suppress(FileNotFoundError):  # the log of a training may have been left elsewhere
            yield "curves", curves_figure(read_scalars(self.tensorboard_dir), self.warmup_epochs)
        if len(pairs.samples):
            yield "samples", samples_figure(*pairs, self.view, "distance in feature space")


def by_pseudonym(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the order of their pseudonyms: in the datalist's, which is that of the names, places would tell names."""
    return sorted(rows, key=lambda row: row["pseudonym"])


def answers_figure(answers: Answers) -> Figure:
    """Measured against requested changes, by every instrument."""
    measured = {name: own(answers.changed(name)) for name in answers.instruments}
    return change_figure(own(answers.requested), measured, answers.names)


def device_of(network: torch.nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(network.parameters()).device


def without_nan(value: Any) -> Any:
    """The same with null for what is not finite, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
