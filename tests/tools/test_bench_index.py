"""The parts of `tools/bench_index.py`; its figures are read from `docs/benchmarks.md`."""

import sys

from conftest import ROOT

from mmscale.data.index.manifest import Manifest

sys.path.insert(0, str(ROOT / "tools"))

import bench_index


def test_both_commands_are_measured_on_media_that_are_probed(tmp_path):
    size = bench_index.write_set(tmp_path, 100)
    seconds = bench_index.measure(tmp_path, 1)
    assert {name: list(taken) for name, taken in seconds.items()} == {
        "index": [1, 2],
        "verify": [1, 2],
    }
    manifest = Manifest.load(tmp_path)
    assert manifest.fields == ["flac", "jpg", "txt"] and len(manifest) == 100
    told = bench_index.table(size, seconds)
    assert "| index |" in told and "| verify |" in told
