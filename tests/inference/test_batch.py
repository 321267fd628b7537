from __future__ import annotations

from types import SimpleNamespace

import pytest

from scripts.inference.batch import infer, print_cautions
from scripts.inference.items import Subjects
from scripts.inference.loading import Failure
from scripts.inference.records import Records

ITEMS = [{"subject": name, "state": name} for name in "abc"]


class Writer:
    """Keeps results of the subjects that it is told."""

    def __init__(self, folder):
        self.records, self.failures, self.written = Records(folder, {}, {}), [], 0
        self.calibration = None
        self.records.claim()

    def keep(self, names):
        for item in ITEMS:
            if item["subject"] in names:
                self.records.begin(item)
                row = {"subject": item["subject"]}
                self.records.write(item, {"codes": row, "attributes": row})
                self.written += 1


def run(folder, evaluate, excluded=()):
    writer = Writer(folder)
    remaining = len(writer.records.remaining(ITEMS))
    infer(SimpleNamespace(run=lambda: evaluate(writer)), writer, Subjects(ITEMS, list(excluded)), remaining)


def subjects(path):
    return path.read_text().split()[1:]


def test_a_complete_run_ends_well_and_is_not_repeated(tmp_path, capsys):
    run(tmp_path, lambda writer: writer.keep("abc"))
    assert subjects(tmp_path / "codes.csv") == ["a", "b", "c"]
    run(tmp_path, lambda writer: pytest.fail("nothing was left to do"))
    assert "Results of 3 subjects (3 of them from earlier runs)" in capsys.readouterr().out


def test_failures_are_listed_by_kind_and_tell_by_the_exit_code(tmp_path, capsys):
    def evaluate(writer):
        writer.keep("a")
        writer.failures += [Failure("b", "LV has 3 voxels"), Failure("c", "LV has 4 voxels")]

    with pytest.raises(SystemExit) as caught:
        run(tmp_path, evaluate, [{"subject": "d", "reason": "no mask"}])
    assert caught.value.code == 3
    assert subjects(tmp_path / "codes.csv") == ["a"]
    assert len((tmp_path / "excluded.csv").read_text().splitlines()) == 4
    text = capsys.readouterr().out
    assert "No result for 3 subjects" in text
    assert "  2: LV has 3 voxels (one of them; numbers of others differ)\n" in text


@pytest.mark.parametrize("error", [KeyboardInterrupt, KeyError])
def test_an_interrupted_run_gathers_what_it_has(error, tmp_path):
    def evaluate(writer):
        writer.keep("ab")
        raise error

    with pytest.raises(error):
        run(tmp_path, evaluate)
    assert subjects(tmp_path / "attributes.csv") == ["a", "b"]


def test_a_result_that_another_run_took_away_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, lambda writer: writer.keep("ab"))
    assert caught.value.code == 3
    assert "1 subjects have neither a result nor a reason" in capsys.readouterr().out


def test_what_holds_for_the_results_is_said_where_nobody_opens_a_page(tmp_path, capsys):
    table = tmp_path / "attributes.csv"
    table.write_text("subject,out_of_range\na,True\nb,False\nc,True\n")
    print_cautions(table, SimpleNamespace(cautions=lambda: ["This model knows nothing."]))
    printed = capsys.readouterr().out
    assert "Out of range: 2 of 3 scans" in printed
    assert "Caution: This model knows nothing." in printed
    table.write_text("subject,out_of_range,missed\na,False,0.1\nb,False,7\n")
    print_cautions(table, None)
    printed = capsys.readouterr().out
    assert "Out of range: 0 of 2 scans\n" in printed
    assert "Not fulfilled: 1 of 2 requests, by more than 1 and up to 7 mL" in printed
    table.write_text("subject\na\n")
    print_cautions(table, None)
    assert capsys.readouterr().out == ""
