from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TENSORS = """
import resource, sys, torch
from scripts.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(10):  # the first ones find no hole to fill
    torch.ones(16_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(16_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_a_tensor_takes_the_memory_of_one_before():
    faults = {}
    for way in ("give back", "keep"):
        run = subprocess.run([sys.executable, "-c", TENSORS, way], cwd=ROOT, capture_output=True, text=True, check=True)
        faults[way] = int(run.stdout)
    pages = 20 * 64_000_000 // resource.getpagesize()
    assert faults["keep"] < pages / 2 < faults["give back"]
