import stat

import pytest

from scripts.cohort.privacy import PSEUDONYMS, pseudonyms_of, read_pseudonyms, summarized, without_name
from scripts.storage import read_csv

MANY = [{"subject": f"s{number:03}"} for number in range(200)]


def test_pseudonyms_count_from_one_and_are_kept(tmp_path):
    first = pseudonyms_of(MANY[:150], tmp_path)
    assert sorted(first.values()) == list(range(1, 151))
    both = pseudonyms_of(MANY, tmp_path)
    assert {subject: both[subject] for subject in first} == first
    assert sorted(both.values()) == list(range(1, 201))
    assert pseudonyms_of(MANY[5:9], tmp_path) == both
    assert {row["subject"]: int(row["pseudonym"]) for row in read_csv(tmp_path / PSEUDONYMS)} == both


def test_neither_names_nor_their_order_nor_a_seed_tell_pseudonyms(tmp_path):
    one, other = (list(pseudonyms_of(MANY, tmp_path / name).values()) for name in "ab")
    in_order = [[number for _, number in sorted(pseudonyms_of(MANY, tmp_path / name).items())] for name in "ab"]
    assert in_order[0] != in_order[1]
    assert sorted(one) == sorted(other) == list(range(1, 201))
    assert list(range(1, 201)) not in in_order


def test_only_the_owner_reads_the_table(tmp_path):
    pseudonyms_of(MANY, tmp_path)
    assert stat.S_IMODE((tmp_path / PSEUDONYMS).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text",
    ["subject\na\n", "subject,pseudonym\na,x\n", "subject,pseudonym\na\n", "subject,pseudonym\na,1\nb,1\n"],
)
def test_a_broken_table_is_refused(text, tmp_path):
    (tmp_path / PSEUDONYMS).write_text(text)
    with pytest.raises(ValueError, match="mend or remove it"):
        read_pseudonyms(tmp_path)


def test_a_name_is_taken_out_of_paths_and_not_of_words():
    told = without_name("/data/A1_2_0/A1_2_0_sa.nii.gz: XA1_2_0 and A1_2_01 stay", "A1_2_0")
    assert told == "/data/<subject>/<subject>_sa.nii.gz: XA1_2_0 and A1_2_01 stay"


@pytest.mark.parametrize("name", ["Jane\u00a0Doe", "Zero\u200bWidth", "back\\slash7", "O'Brien", "sub ject"])
def test_a_name_is_taken_out_of_what_the_system_says(name):
    told = str(PermissionError(13, "Permission denied", f"/scans/{name}/sa_ED.nii.gz"))
    assert "<subject>/sa_ED.nii.gz" in without_name(told, name)


def test_texts_that_differ_in_numbers_and_names_are_one():
    texts = [("a", "a_sa.nii.gz is missing"), ("b", "RV has 6 voxels"), ("c", "RV has 7.5 voxels"), ("d", "no mask")]
    rv = "RV has 6 voxels (one of them; numbers of others differ)"
    assert summarized(texts) == [(2, rv), (1, "<subject>_sa.nii.gz is missing"), (1, "no mask")]
    assert summarized([("a", "RV has 6 voxels"), ("b", "RV has 6 voxels")]) == [(2, "RV has 6 voxels")]
