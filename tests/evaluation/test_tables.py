import pytest

from scripts.evaluation.tables import (
    Table,
    cell,
    number,
    paper_table,
    sound_table,
    table_rows,
    to_markdown,
    whatif_tables,
)
from tests.evaluation.world import Generator, ask

VALUE = {"value": 0.5, "low": 0.4, "high": 0.6}
NOTHING = {"value": float("nan"), "low": float("nan"), "high": float("nan"), "undefined": "too few subjects"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.51234, "0.512"),
        (0.0012345, "0.00123"),
        (1e-17, "0"),
        (12.3456, "12.35"),
        (1234.5, "1.23e+03"),
        (-0.7, "-0.700"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_a_cell_shows_its_interval_or_that_there_is_none():
    assert cell(VALUE) == "0.500 [0.400, 0.600]"
    assert cell(NOTHING) == "n/a"
    assert cell({"text": "3"}) == "3"


def test_markdown_gives_the_reason_of_what_is_undefined():
    text = to_markdown(Table("key", "Title", "Note.", {"model": {"SCC": VALUE, "MIG": NOTHING}}))
    assert "| model | 0.500 [0.400, 0.600] | n/a |" in text
    assert text.endswith("n/a: too few subjects.\n")


def test_the_csv_has_one_row_per_value():
    rows = list(table_rows(Table("key", "Title", "", {"model": {"SCC": VALUE, "MIG": NOTHING}})))
    assert [row["column"] for row in rows] == ["SCC", "MIG"]
    assert rows[0]["low"] == 0.4
    assert rows[1]["undefined"] == "too few subjects"


def test_an_undefined_protocol_fills_its_row():
    metrics = dict.fromkeys(("scc", "modularity", "sap", "mig"), VALUE)
    paper = {"model": {"undefined": "3 subjects"}, "oracle": metrics | {"interpretability": {"all": VALUE, "each": {}}}}
    table = paper_table(paper, "who")
    assert cell(table.rows["model"]["Interp. all"]) == cell(table.rows["model"]["SCC"]) == "n/a"
    assert cell(table.rows["oracle"]["Interp. all"]) == "0.500 [0.400, 0.600]"


def test_parts_of_dci_stand_in_columns_of_their_own():
    row = dict.fromkeys(("r2", "scc", "partial_scc", "dmig", "active_units"), VALUE)
    row["dci"] = VALUE | {"completeness": VALUE | {"value": 0.1}, "informativeness": NOTHING}
    shown = sound_table({"model": row}, "who", 20).rows["model"]
    assert shown["DCI completeness"]["value"] == 0.1
    assert cell(shown["DCI informativeness"]) == "n/a"


def test_counterfactuals_stand_beside_what_their_instruments_are_worth():
    found, _ = ask(Generator(strength=0.5))
    worth, answers, preserved = whatif_tables(found)
    assert answers.rows["LVEDV, reader"]["slope"]["value"] == pytest.approx(0.5, abs=0.01)
    assert answers.rows["LVEDV, self-report"]["slope"]["value"] == pytest.approx(1, abs=0.01)
    assert answers.rows["mean, reader"]["error (mL)"]["value"] == pytest.approx(7.5, abs=0.1)
    assert (
        worth.rows["RVEDV, reader"]["error, scans"]["value"]
        < 1e-3
        < worth.rows["RVEDV, reader"]["error, reconstructions"]["value"]
    )
    found["corrected"] = {"reader": {"LVEDV": {"slope": 0.913, "offset": 8.0}}}
    note = whatif_tables(found)[0].note
    assert "on which its slopes were LVEDV 0.91; it is not corrected for RVEDV" in note
    found["corrected"] = {"reader": {}}
    assert "The reader is not corrected: that takes more such scans" in whatif_tables(found)[0].note
    assert "corrected" not in worth.note
    assert "LVEDV 48 of 48 (48)" in answers.note
    assert "-20, -10, +10, +20 mL (all else equal)" in answers.note
    assert cell(preserved.rows["Dice, LV"]["changed"]) == "0 [0, 0]"  # the world's maps have no largest share


def test_without_counterfactuals_there_are_no_tables():
    assert whatif_tables(None) == []
