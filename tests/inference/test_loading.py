from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose

from scripts.cohort.layout import SubjectError
from scripts.inference.loading import FAILURES, Failure, ScanDataset, collate_scans


def load(item):
    problem = item.get("problem")
    if problem is None:
        return {"subject": item["subject"], "image": torch.ones(1, 2, 2)}
    try:
        raise problem
    except SubjectError as error:  # as LoadSubjectd adds the folder
        raise SubjectError(f"/scans/{item['subject']}: {error}; run prepare again") from error


def loader(*items, workers=0):
    dataset = ScanDataset(
        [{"subject": name} | ({"problem": problem} if problem else {}) for name, problem in items], Compose([load])
    )
    return DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate_scans)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_subject_that_cannot_be_loaded_leaves_its_batch(workers):
    items = (("a", None), ("b", SubjectError("cut off")), ("c", FileNotFoundError(2, "gone", "x")), ("d", None))
    batches = list(loader(*items, workers=workers))
    assert [batch["subject"] for batch in batches] == [["a"], ["d"]]
    assert batches[0][FAILURES] == [Failure("b", "cut off")]
    assert "gone" in batches[1][FAILURES][0].reason


def test_a_batch_may_have_nothing_left():
    batch = next(iter(loader(("a", SubjectError("cut off")))))
    assert batch == {FAILURES: [Failure("a", "cut off")]}


def test_an_error_of_the_program_surfaces():
    with pytest.raises(RuntimeError) as caught:
        list(loader(("a", KeyError("image"))))
    assert isinstance(caught.value.__cause__, KeyError)
