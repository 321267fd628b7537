"""``python -m scripts.packaging``, which ``make package`` runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts import bundle_root
from scripts.packaging.identifiers import names_of_file, read_names
from scripts.packaging.large_files import parse_urls
from scripts.packaging.package import package


def main(arguments: Sequence[str] | None = None) -> None:
    """Package the bundle that this code belongs to; ends with a message where that is refused."""
    options = parser().parse_args(arguments)
    beside = Path(options.bundle_root).absolute().parent  # in whose output a checkout's runs leave their cohorts
    near = [file for name in ("output", "output/*") for file in beside.glob(f"{name}/cohort.csv")]
    try:
        subjects = {name for cohort in options.cohort for name in read_names(cohort)}
        subjects |= {name for file in near for name in names_of_file(file)}
        written = package(
            options.bundle_root, options.dist, options.overlay, subjects, parse_urls(options.url), options.schema
        )
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"[package] {error}")
    print(f"[package] {written.path}: {written.files} files, SHA-256 {written.sha256}")
    print(f"[package] {len(subjects)} names of subjects of cohorts were looked for, and the forms that others have")
    for note in written.notes:
        print(f"[package] note: {note}")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m scripts.packaging", description=package.__doc__.splitlines()[0])
    made.add_argument("--bundle_root", default=bundle_root(), help="the bundle")
    made.add_argument("--dist", default="dist", help="folder of the archive")
    made.add_argument(
        "--overlay", nargs="*", default=["compact.json"], metavar="FILE", help="configs that the weights are of"
    )
    made.add_argument(
        "--cohort", action="append", default=[], help="folder or table of subjects to look for; may be repeated"
    )
    made.add_argument(
        "--url", action="append", default=[], metavar="FILE=URL", help="where weights above 25 MB can be downloaded"
    )
    made.add_argument("--schema", help="a copy of the schema of metadata.json")
    return made


if __name__ == "__main__":
    main()
