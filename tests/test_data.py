from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, Dataset, MetaTensor
from monai.data.utils import set_rnd
from monai.transforms import Compose, RandAdjustContrastd, RandGaussianNoise, RandGaussianNoised, Transform

from scripts.cohort.datalist import load_items
from scripts.cohort.layout import SubjectError
from scripts.data import (
    STALLED,
    DiskCacheDataset,
    ReproducibleLoader,
    cache_folder,
    cached_dataset,
    decode,
    encode,
    own_modules,
    settings_hash,
    streamed_dataset,
)
from scripts.handlers import EpochSeed
from scripts.transforms import (
    LoadSubjectd,
    RandAffineHeartd,
    StackAttributesd,
    VentricleCropd,
    ViewsToChannelsd,
)


class Counted(Transform):
    """A deterministic transform that counts its calls, even from the threads that fill a cache."""

    calls = 0

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, item):
        Counted.calls += 1
        return torch.full((1, 4), float(item["value"] * self.factor))


@pytest.fixture(autouse=True)
def no_calls():
    Counted.calls = 0


@pytest.fixture(params=["memory", "disk"])
def cache_dir(request, tmp_path):
    return None if request.param == "memory" else str(tmp_path)


DATA = [{"value": 1}, {"value": 2}]
MANY = [{"value": i} for i in range(40)]  # so many that worker processes fill the cache


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_preprocessing_runs_once_and_augmentation_each_time(cache_dir):
    dataset = cached_dataset(DATA, Compose([Counted(3), RandGaussianNoise(prob=1)]), cache_dir)
    first, second = dataset[1], dataset[1]
    assert not torch.equal(first, second)
    assert abs(float(first.mean()) - 6) < 1
    _ = dataset[0], dataset[0]
    assert Counted.calls == 2


def test_other_preprocessing_is_not_answered_from_the_cache(tmp_path):
    assert cached_dataset(DATA, Compose([Counted(3)]), str(tmp_path))[1][0, 0] == 6
    assert cached_dataset(DATA, Compose([Counted(5)]), str(tmp_path))[1][0, 0] == 10


def test_other_augmentation_is_answered_from_the_cache(tmp_path):
    for prob in (0, 1):
        cached_dataset(DATA, Compose([Counted(3), RandGaussianNoise(prob=prob)]), tmp_path)
    assert Counted.calls == 2


def test_settings_count_by_their_value_and_code_counts_too(monkeypatch, tmp_path):
    name = "".join(["E", "D"])  # equal to the other one's, and another object
    assert settings_hash([LoadSubjectd(["ED", "ED"])]) == settings_hash([LoadSubjectd(["ED", name])])
    assert settings_hash([LoadSubjectd(["ED"])]) != settings_hash([LoadSubjectd(["ES"])])
    modules = own_modules([LoadSubjectd()])
    assert {"scripts.transforms", "scripts.cohort.layout"} <= {module.__name__ for module in modules}
    before = settings_hash([LoadSubjectd()])
    for module in modules:
        edited = shutil.copy(module.__file__, tmp_path)
        with open(edited, "a") as file:
            file.write("# edited\n")
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", edited)
            assert settings_hash([LoadSubjectd()]) != before


@pytest.fixture
def cohort(phantoms, prepared, tmp_path):
    """A folder of scans of its own, and what gives the items of its datalist."""
    dataset = shutil.copytree(phantoms, tmp_path / "scans")
    return dataset, lambda: load_items(prepared / "datalist.json", dataset, attributes=NAMES)


NAMES = ["LVEDV", "MyoESV"]
CROP = [
    LoadSubjectd(),
    VentricleCropd(("ED", "ES"), (32, 32), 5.0),
    ViewsToChannelsd(("ED", "ES")),
    StackAttributesd(NAMES),
]


def chosen(item):
    return {key: item[key] for key in ("image", "attributes")}


class Chosen(Transform):
    def __call__(self, item):
        Counted.calls += 1
        return chosen(item)


def replace_bytes(path):
    """Change a file, but neither its size nor its name."""
    path.write_bytes(path.read_bytes())


def grow(path):
    """Change the size of a file, but not its time."""
    times = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("kind", ["image", "mask"])
@pytest.mark.parametrize("change", [replace_bytes, grow])
def test_a_changed_file_is_read_again_and_no_other(cohort, tmp_path, change, kind):
    _, items = cohort
    transform = Compose([*CROP, Chosen()])
    cached_dataset(items(), transform, tmp_path / "cache")
    made, Counted.calls = Counted.calls, 0
    assert made == len(items())
    change(Path(items()[2][f"{kind}_ES"]))
    cached_dataset(items(), transform, tmp_path / "cache")
    assert Counted.calls == 1


def test_a_changed_row_of_the_datalist_makes_a_new_entry(tmp_path):
    cached_dataset(DATA, Counted(1), tmp_path)
    dataset = cached_dataset([DATA[0], {"value": 2, "LVEDV": 3.0}], Counted(1), tmp_path)
    assert Counted.calls == 3
    assert len(entries(tmp_path)) == 3
    assert [float(each[0, 0]) for each in dataset] == [1, 2]


def test_the_order_of_the_subjects_is_that_of_the_data_whatever_the_cache_holds(tmp_path):
    cached_dataset(MANY[10:20], Counted(1), tmp_path)
    dataset = cached_dataset(MANY[::-1], Counted(1), tmp_path)
    assert [float(each[0, 0]) for each in dataset] == [item["value"] for item in MANY[::-1]]


@pytest.mark.parametrize("damage", [b"", b"no entry", None], ids=["empty", "other", "cut"])
def test_a_broken_entry_is_made_again(tmp_path, damage):
    dataset = cached_dataset(DATA, Counted(3), tmp_path)
    path = dataset.path(1)
    sound = path.read_bytes()
    path.write_bytes(sound[:-9] if damage is None else damage)
    with pytest.warns(UserWarning, match="is broken .* made again"):
        assert dataset[1][0, 0] == 6
    assert path.read_bytes() == sound


def test_stray_files_in_the_cache_do_no_harm(tmp_path):
    dataset = cached_dataset(DATA, Counted(3), tmp_path)
    for folder in (tmp_path, dataset.folder, dataset.path(0).parent):
        (folder / ".DS_Störe").touch()
    again = cached_dataset(DATA, Counted(3), tmp_path)
    assert [float(each[0, 0]) for each in again] == [float(each[0, 0]) for each in dataset]


def test_a_flipped_bit_is_noticed():
    data = np.frombuffer(encode({"image": torch.rand(2, 5)}), np.uint8)
    for position in range(len(data)):
        broken = data.copy()
        broken[position] ^= 4
        with pytest.raises(ValueError, match="checksum"):
            decode(broken)


def test_an_interrupted_writing_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    dataset = streamed_dataset(DATA, Counted(3), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *paths: os._exit(9))  # as a kill in front of the last step
        process = multiprocessing.get_context("fork").Process(target=dataset.store, args=(0,))
        process.start()
        process.join()
    assert process.exitcode == 9
    assert len(entries(tmp_path)) == 1
    assert not dataset.path(0).exists()
    dataset.fill()
    assert dataset[0][0, 0] == 3
    assert {path.name for path in entries(tmp_path)} >= {name.decode() for name in dataset.names}


def test_processes_fill_one_cache_together(tmp_path):
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(3)

    def fill():
        gate.wait()
        for item in cached_dataset(MANY, Counted(1), tmp_path, at_once=False):
            assert item.shape == (1, 4)

    processes = [context.Process(target=fill) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(entries(tmp_path)) == len(MANY)
    dataset = cached_dataset(MANY, Counted(1), tmp_path)
    assert Counted.calls == 0
    assert [float(each[0, 0]) for each in dataset] == [item["value"] for item in MANY]


def test_filling_skips_what_another_process_has_written_meanwhile(tmp_path, monkeypatch):
    other = cached_dataset(DATA, Counted(1), tmp_path)
    dataset = DiskCacheDataset(DATA, Counted(1), tmp_path)
    monkeypatch.setattr(dataset, "stored", lambda: np.array([], dtype="S32"))  # as it was before the other began
    dataset.fill()
    assert Counted.calls == len(other)


def test_filling_changes_nothing_that_a_training_draws(tmp_path):
    for state in (torch.random.get_rng_state, lambda: torch.tensor(np.random.get_state()[1].astype(np.int64))):  # noqa: NPY002
        before = state()
        cached_dataset(MANY, Counted(len(before)), tmp_path)
        assert torch.equal(state(), before)


def test_crops_and_their_augmentation_are_those_of_the_memory_to_the_last_bit(cohort, tmp_path):
    items = cohort[1]()
    transform = Compose(
        [
            *CROP,
            Chosen(),
            RandAffineHeartd(["image"], 0.9, 0.2, 3, (0.75, 1.3), NAMES),
            RandAdjustContrastd(["image"], prob=0.9, gamma=(0.6, 1.6)),
        ]
    )
    seen = []
    for dataset in (cached_dataset(items, transform, None), cached_dataset(items, transform, tmp_path)):
        set_rnd(dataset, 5)
        seen.append([each for _ in range(3) for each in dataset])
    for memory, disk in zip(*seen, strict=True):
        assert all(torch.equal(torch.as_tensor(memory[key]), disk[key]) for key in ("image", "attributes"))
        assert all(type(value) is torch.Tensor and value.dtype == torch.float32 for value in disk.values())


def test_an_entry_gives_back_what_was_written():
    item = {
        "image": torch.rand(2, 3, 5).transpose(1, 2).contiguous(),
        "half": torch.rand(3).half(),
        "none": torch.empty(0),
        "label": torch.tensor([[True, False, True]]),
        "count": torch.tensor(7),
        "voxel": [1.8, 1.8],
        "subject": None,
    }
    read = decode(np.frombuffer(encode(item), np.uint8).copy())
    assert read.keys() == item.keys()
    for key, value in item.items():
        same = torch.equal(read[key], value) if isinstance(value, torch.Tensor) else read[key] == value
        assert same, key
        assert not isinstance(value, torch.Tensor) or read[key].dtype == value.dtype


class Tracked(Transform):
    def __call__(self, item):
        return {"image": MetaTensor(torch.ones(1, 2), meta={"file": "x"}), "other": np.ones(3)}


@pytest.mark.parametrize("at_once", [True, False])
def test_items_are_plain_tensors_before_and_after_they_are_cached(tmp_path, at_once):
    dataset = cached_dataset(DATA, Tracked(), tmp_path, at_once)
    for item in (dataset[0], dataset[0]):
        assert [type(value) for value in item.values()] == [torch.Tensor] * 2


def test_file_names_tell_nothing_of_a_subject(tmp_path):
    cached_dataset([{"value": 1, "subject": "patient007", "image_ED": "/secret/x"}], Counted(1), tmp_path)
    (path,) = entries(tmp_path)
    assert not any(word in str(path.relative_to(tmp_path)) for word in ("patient", "secret"))
    assert b"patient" not in path.read_bytes()


class Picky(Transform):
    def __call__(self, item):
        if item["value"] == 7:
            raise SubjectError("patient7: sa_ED.nii.gz cannot be opened")
        return torch.ones(1)


@pytest.mark.parametrize("data", [MANY, MANY[5:9]], ids=["processes", "alone"])
def test_a_subject_that_cannot_be_read_is_named_and_the_others_stay_cached(tmp_path, data):
    with pytest.raises(SubjectError, match=r"^patient7: sa_ED.nii.gz cannot be opened$"):
        cached_dataset(data, Picky(), tmp_path)
    with pytest.raises(SubjectError, match=r"^patient7"):
        streamed_dataset(data, Picky(), tmp_path)[[item["value"] for item in data].index(7)]


def test_memory_holds_no_crop_and_workers_touch_no_item(tmp_path):
    dataset = cached_dataset(MANY, Compose([Counted(1), RandGaussianNoise(prob=1)]), tmp_path)
    assert not hasattr(dataset, "_cache")
    assert dataset.names.nbytes == 32 * len(MANY)

    class Untouched(list):
        def __getitem__(self, index):
            raise AssertionError("an item was visited")

        __iter__ = __getitem__

    dataset.data = Untouched(MANY)
    set_rnd(dataset, 3)
    assert dataset[4].shape == (1, 4)


def test_nothing_is_cached_where_no_folder_is_named():
    assert isinstance(cached_dataset(DATA, Counted(1), None), CacheDataset)
    assert isinstance(cached_dataset(DATA, Counted(1), False), CacheDataset)
    assert type(streamed_dataset(DATA, Counted(1), None)) is Dataset


def test_streaming_fills_the_cache_as_it_goes(tmp_path):
    dataset = streamed_dataset(DATA, Counted(1), tmp_path)
    assert Counted.calls == 0
    _ = dataset[1], dataset[1]
    assert Counted.calls == 1
    cached_dataset(DATA, Counted(1), tmp_path)
    assert Counted.calls == 2


def test_a_cache_that_cannot_be_written_is_explained():
    with pytest.raises(NotADirectoryError, match=r"cache_dir ./dev/null/x. .* with --cache_dir"):
        cached_dataset(DATA, Counted(1), "/dev/null/x")


def test_the_cache_lies_beside_the_datalist_or_in_the_output(tmp_path, monkeypatch):
    datalist = tmp_path / "cohort" / "datalist.json"
    assert cache_folder(datalist, tmp_path / "run") == str(tmp_path / "run" / "cache")
    datalist.parent.mkdir()
    assert cache_folder(datalist, tmp_path / "run") == str(tmp_path / "cohort" / "cache")
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    assert cache_folder(datalist, tmp_path / "run") == str(tmp_path / "run" / "cache")


class Empty(Transform):
    def __call__(self, item):
        return {"image": torch.zeros(1, 2)}


def epochs(folder, last, first=0, workers=2, persistent=True):
    """The images of the epochs behind the first, augmented in workers, and what a training step draws beside them."""
    seen = []
    dataset = cached_dataset(MANY[:6], Compose([Empty(), RandGaussianNoised("image", prob=1)]), folder)
    engine = Engine(lambda engine, batch: seen.append((*batch["image"].flatten().tolist(), torch.rand(1).item())))
    engine.data_loader = ReproducibleLoader(
        dataset, batch_size=2, shuffle=True, num_workers=workers, persistent_workers=persistent and workers > 0
    )
    EpochSeed(3).attach(engine)
    engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", first))
    engine.run(engine.data_loader, max_epochs=last)
    return seen


def test_workers_that_persist_draw_in_each_epoch_what_a_resumed_training_draws(tmp_path):
    whole = epochs(tmp_path, 3)
    assert whole == epochs(tmp_path, 3, persistent=False)
    assert whole[6:] == epochs(tmp_path, 3, first=2)
    assert whole[:3] != whole[3:6]
    assert len({value for batch in whole for value in batch}) == 45  # no two subjects draw the same


@pytest.mark.parametrize("folder", ["cache", None])
def test_any_number_of_workers_gives_the_same(folder, tmp_path):
    folder = folder and tmp_path / folder
    alone = epochs(folder, 2, workers=0)
    assert alone == epochs(folder, 2, workers=2)
    assert alone == epochs(folder, 2, workers=3, persistent=False)


def test_a_worker_that_gives_nothing_is_not_waited_for_for_ever():
    assert ReproducibleLoader(MANY, num_workers=1).timeout == STALLED
    assert ReproducibleLoader(MANY).timeout == 0  # there is nobody to wait for, and torch refuses another number
