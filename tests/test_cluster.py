from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import partial

import pytest

from scripts.parallel import Workers, parallel_map
from tests.tasks import die_once_at_7, die_slowly_at_7, here, no_square_of_7, square, square_at_second_attempt
from tests.test_parallel import NUMBERS, without_7

dask = pytest.importorskip("dask")
pytest.importorskip("distributed")

from scripts import cluster  # noqa: E402


@pytest.fixture
def mapped(scheduler):
    """The map on the cluster of two workers."""
    return lambda function, items: list(parallel_map(function, items, Workers(scheduler=scheduler), "test", "number"))


def test_results_come_in_order(mapped):
    assert mapped(square, NUMBERS) == [square(number) for number in NUMBERS]


def test_workers_work_where_the_run_was_started(mapped, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert mapped(here, [0]) == [str(tmp_path)]


def test_what_fails_once_is_tried_once_more(mapped, tmp_path):
    assert mapped(partial(square_at_second_attempt, folder=tmp_path), NUMBERS) == [square(n) for n in NUMBERS]


def test_what_fails_twice_is_told_and_the_others_go_on(mapped, tmp_path):
    failed = without_7(mapped(partial(no_square_of_7, folder=tmp_path), NUMBERS))
    assert failed.reason.startswith("unexpected KeyError: 'seven' (tasks.py, line ")
    assert len(list(tmp_path.glob("7 *"))) == 2


def test_a_dead_worker_takes_nothing_with_it(mapped, tmp_path):
    assert without_7(mapped(partial(die_once_at_7, folder=tmp_path), NUMBERS)) == 49


def test_what_kills_every_worker_is_told_and_no_other_is_taken_for_it(mapped):
    """Slowly, so that the next number waits at the same worker, for whose death Dask blames it too."""
    assert "its process died each time" in without_7(mapped(die_slowly_at_7, NUMBERS)).reason


def test_an_unreachable_scheduler_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    with pytest.raises(ConnectionError, match=r"scheduler 'tcp://127.0.0.1:9' cannot be reached .* 'dask scheduler'"):
        list(parallel_map(square, NUMBERS, Workers(scheduler="tcp://127.0.0.1:9"), "test", "number"))


def test_a_scheduler_file_that_is_none(tmp_path):
    path = tmp_path / "scheduler.json"
    with pytest.raises(FileNotFoundError, match="does not exist: 'dask scheduler --scheduler-file"):
        cluster.read_address(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not the file of a Dask scheduler"):
        cluster.read_address(path)


def test_only_one_cluster_can_be_named():
    with pytest.raises(ValueError, match="scheduler and cluster are both named"):
        Workers(scheduler="tcp://host:1", cluster="slurm")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slrum", "'slrum' names none of the queueing systems htcondor, lsf, .*slurm"),
        ("slurm:big", "'slurm:big' names a profile that Dask's configuration does not have under 'jobqueue'"),
        ("slurm", r"'slurm' cannot be used \(.*cores and memory.*\)\. Set what is missing under 'jobqueue: slurm:'"),
    ],
)
def test_a_profile_that_cannot_be_used(name, message):
    pytest.importorskip("dask_jobqueue")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match=message):
        cluster.start(name)
    assert signal.getsignal(signal.SIGINT) is handler


SBATCH = """#!/bin/sh
cat "$1" >> {folder}/jobs
cp "$1" {folder}/job.$$  # as the queue does: the file is removed as soon as it is submitted
PYTHONPATH= sh {folder}/job.$$ > {folder}/job.log.$$ 2>&1 &
echo "Submitted batch job $!"
"""


def test_a_queue_is_asked_for_workers(tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    for name, script in (("sbatch", SBATCH.format(folder=tmp_path)), ("scancel", "#!/bin/sh\nkill $1\n")):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    profile = {"cores": 1, "memory": "1GB", "python": sys.executable, "job-extra-directives": ["--qos=heart"]}
    profile["scheduler-options"] = {"dashboard_address": ":0"}
    base = dask.config.get("jobqueue.slurm")
    workers = Workers(2, cluster="slurm:hearts")
    with dask.config.set({"jobqueue.hearts": {**base, **profile}}):
        assert list(parallel_map(square, NUMBERS, workers, "test", "number")) == [square(n) for n in NUMBERS]
        client = cluster.connect(workers)
        client.cluster.close()
        client.close()
    jobs = (tmp_path / "jobs").read_text()
    assert jobs.count("#SBATCH --qos=heart") == 2
    cluster.connect.cache_clear()


def test_a_worker_that_cannot_see_the_code_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="it needs the same file system"):
        cluster.shipped(str(tmp_path))(b"")


def test_a_worker_with_the_code_of_another_bundle_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "scripts").mkdir()
    with pytest.raises(ImportError, match="restart it"):
        cluster.shipped(str(tmp_path))(b"")


def test_the_threads_of_a_worker_work_one_at_a_time():
    inside, most = [], []

    def work(item):
        inside.append(item)
        most.append(len(inside))
        time.sleep(0.01)
        inside.remove(item)

    running = [threading.Thread(target=cluster.serve, args=(os.getcwd(), work, item)) for item in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert max(most) == 1
