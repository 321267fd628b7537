"""How commands are found in a document, and what is done to them before they run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documentation.documents import Command, blocks, commands, servers
from tests.documentation.reductions import Unprepared, place, reduced, steps

DOCUMENT = """# Title

`make setup` makes it; `run list` and `make` of `torchrun` are none of these, but `python -m tests.tool
--option` is.

```bash
make demo    # draws 'hearts'

# on a cluster:
#   dask scheduler --scheduler-file ~/file.json     and on each node:
python -m monai.bundle run prepare --config_file x/cohort.json \\
    --name 'a # b' \\
    --output_dir <cohort>  # not quite
```

```python
x = "`make weights`"
```
"""


def at(text):
    return Command("README.md", 7, text)


def test_commands_are_found_in_order():
    assert [command[1:] for command in commands(DOCUMENT, "README.md")] == [
        (3, "make setup"),
        (3, "make"),
        (3, "python -m tests.tool --option"),
        (7, "make demo"),
        (
            11,
            "python -m monai.bundle run prepare --config_file x/cohort.json --name 'a # b' --output_dir <cohort>",
        ),
    ]


def test_servers_stand_in_comments():
    assert servers(DOCUMENT) == ["dask scheduler --scheduler-file ~/file.json"]


def test_blocks_have_a_language():
    assert [block.language for block in blocks(DOCUMENT + "\n```\ntext\n```\n")] == ["bash", "python", ""]


def test_a_block_without_end_is_refused():
    with pytest.raises(ValueError, match="never closed: '```bash"):
        blocks("```bash\nmake\n")


def test_a_title_tells_what_is_run_and_with_which_configs():
    command = at("python -m monai.bundle run training --config_file \"['x/train.json','x/ed.json']\" --datalist b.json")
    assert command.title == "README.md: training train ed"
    assert at('make package PACKAGE_ARGS="--cohort <cohort>"').title == "README.md: make package"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("curl http://x", r"README.md, line 7: the tests do not know how to run 'curl http://x': add its kind to"),
        (
            "make package X=<there>",
            r"README.md, line 7: nobody knows what <there> stands for .* to PLACEHOLDERS",
        ),
    ],
)
def test_what_is_not_known_is_refused(text, message):
    with pytest.raises(Unprepared, match=message):
        steps(at(text), Path("work"))


@pytest.mark.parametrize(
    ("printed", "run"),
    [
        ("torchrun --nproc_per_node 4 -m x", "torchrun --nproc_per_node 2 -m x"),
        ("make demo DEMO_EPOCHS=300", "make demo DEMO_EPOCHS=2"),
        ("x --seeds '[0,1,2]' --seeds_of y", "x --seeds '[0]' --seeds_of y"),
        (
            "x --config_file configs/segment.json --max_epochs=9",
            "x --config_file configs/segment.json --max_epochs=1 --spatial_size '[96,96]' --spacing 2.5 "
            "--channels '[8,16,32]' --batch_size 2",
        ),
        ("x --config_file configs/inference.json", "x --config_file configs/inference.json"),
    ],
)
def test_commands_are_made_short(printed, run):
    assert reduced(printed) == run


def test_a_model_has_the_folder_of_its_overlays():
    training = (
        "python -m monai.bundle run training --config_file \"['bundle/configs/train.json','x/ed.json']\" -o <model>"
    )
    inference = "python -m monai.bundle run --config_file \"['x/inference.json','x/ed.json']\" -c <model>/model.pt"
    assert " -o work/checkout_model_ed " in steps(at(training), Path("work"))[0]
    assert " -c work/checkout_model_ed/model.pt " in steps(at(inference), Path("work"))[0]


def test_a_study_is_planned_as_printed_and_then_run():
    planned, run = steps(at("python -m monai.bundle run --config_file x/study.json --seeds '[0,1]'"), Path("work"))
    assert planned == "python -m monai.bundle run list --config_file x/study.json --seeds '[0,1]'"
    assert run.startswith("python -m monai.bundle run --config_file x/study.json --seeds '[0]' --methods ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x --config_file bundle/configs/train.json", "checkout"),
        ("x --config_file configs/train.json", "bundle"),
        ("x --config_file \"['configs/train.json']\"", "bundle"),
        ("make demo", "checkout"),
    ],
)
def test_configs_tell_where_a_command_runs(text, expected):
    assert place(at(text)) == expected


def test_what_takes_too_long_is_asked_for_its_help():
    assert steps(at("python -m tests.benchmarks.masks"), Path("work")) == ["python -m tests.benchmarks.masks --help"]
    assert steps(at("make bench"), Path("work")) == ["make -n bench"]
