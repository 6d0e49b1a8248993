"""The parts of `tools/bench_order.py`; its figures are read from `docs/benchmarks.md`."""

import json
import sys

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import bench_order


def test_a_set_sorted_by_class_and_how_two_orders_mix_it(tmp_path):
    labels = bench_order.write_set(tmp_path)
    assert labels == sorted(labels) and len(labels) == bench_order.TRAIN
    assert len(list((tmp_path / "train").glob("*.tar"))) == 30
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(bench_order.config_of(tmp_path)))
    local, full = (
        bench_order.mixing(config, settings, labels) for settings in bench_order.ORDERS.values()
    )
    assert local["groups"] > 1 == full["groups"]
    assert 1 < local["shards"] < full["shards"] <= 30 and 1 < local["classes"] <= 10
    assert abs(local["samples"] / full["samples"] - 1) < 0.05


def test_the_verdict_is_that_of_students_t():
    row = {"groups": 1, "lanes": 1, "samples": 1.0, "shards": 1.0, "classes": 1.0}
    full = [0.90, 0.91, 0.92, 0.93, 0.94]
    same = {"local": row | {"accuracy": [0.91, 0.90, 0.93, 0.92, 0.94]}, "full": row}
    worse = {"local": row | {"accuracy": [0.80, 0.82, 0.81, 0.84, 0.84]}, "full": row}
    told = [bench_order.table(one | {"full": row | {"accuracy": full}}) for one in (same, worse)]
    assert "no difference at 95 %" in told[0] and ": a difference at 95 %" in told[1]
