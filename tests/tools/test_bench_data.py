"""The benchmarks run and print every row; what they measure is read from `docs/benchmarks.md`, not
tested.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def run_tool(*arguments: str, data: Path | None = None) -> str:
    environment = {**os.environ, "MMSCALE_DATA": str(data)} if data else None
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_bench_data_measures_every_side(real_data):
    result = json.loads(
        run_tool(
            "tools/bench_data.py",
            "--photographs",
            "16",
            "--clips",
            "40",
            "--rounds",
            "1",
            "--json",
            data=real_data,
        )
    )
    sides = ["mmscale_pictures", "mmscale_float", "libjpeg_pictures", "webdataset_pictures"]
    assert list(result["rates"]) == [*sides, "mmscale_speech", "webdataset_speech"]
    for rates in result["rates"].values():
        assert all(rate["samples_s"] > 0 for workers in ("1", "2") for rate in rates[workers])
    assert result["amount"] == {"samples": 16, "photographs": 16, "clips": 40, "rounds": 1}
    assert all(times["seconds"] > times["torch_s"] > 0 for times in result["first_batch"].values())


def test_bench_plan_reports_every_figure(tmp_path):
    lines = run_tool(
        "tools/bench_plan.py", "--samples", "60000", "--folder", str(tmp_path)
    ).splitlines()
    assert lines[0].startswith("60,000 samples") and len(lines) == 10
    assert (
        run_tool("tools/bench_plan.py", "--folder", str(tmp_path)).splitlines()[-1] == lines[-1]
    ), "the same index again"


def test_bench_release_reports_every_step_and_cleans_up(tmp_path):
    more = ["--model", "configs/model/tiny.yaml", "--ranks", "3"]
    lines = run_tool("tools/bench_release.py", "--folder", str(tmp_path), *more).splitlines()
    rows = [line for line in lines if line.startswith("|") and "GiB" in line]
    assert len(rows) == 5 and "3 shards of float32" in lines[0]
    assert list(tmp_path.iterdir()) == []
