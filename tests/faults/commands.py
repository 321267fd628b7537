"""Several commands in one process, which loads the libraries once: ``python -m tests.faults.commands <file>``.

The file is JSON: a list of ``[run_id, config files, keys]`` for ``monai.bundle.run``. Beside it, ``drawn.json`` gets
all texts that figures were drawn with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.text import Text
from monai.bundle import run

ALLOWED = 3  # exit code of an inference in which some subjects have no result


def record_texts() -> set[str]:
    """Every text of every figure from now on: as pixels, no search of bytes would find them."""
    drawn: set[str] = set()
    set_text = Text.set_text

    def recorded(self: Text, s: Any) -> None:
        drawn.add(str(s))
        set_text(self, s)

    Text.set_text = recorded
    return drawn


def execute(run_id: str, files: list[str], keys: dict[str, Any]) -> None:
    """One command; what stops it stops all."""
    try:
        run(run_id=run_id, config_file=files, **keys)
    except SystemExit as end:
        if end.code != ALLOWED:
            raise


def main() -> None:
    """Run all commands of the file."""
    path, drawn = Path(sys.argv[1]), record_texts()
    for command in json.loads(path.read_text()):
        execute(*command)
    path.with_name("drawn.json").write_text(json.dumps(sorted(drawn)))


if __name__ == "__main__":
    main()
