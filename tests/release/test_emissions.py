"""The model card's estimate of emissions."""

import json

import pytest
from small_run import save_run, small_config, write_shards

from mmscale.release.export import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    write_shards(made / "shards", count=4)
    save_run(small_config(made / "run", made / "shards"), steps=(5, 9))
    save_run(small_config(made / "other", made / "shards"), steps=(21,))
    return made


def test_the_card_estimates_emissions_from_what_was_recorded(folder, tmp_path):
    config = small_config(tmp_path / "run", folder / "shards")
    config.run.watts, config.run.co2_g_per_kwh = 500.0, 400.0
    run = save_run(config)
    export(run, tmp_path / "out")
    assert "Not known: the run's metrics.jsonl" in (tmp_path / "out" / "README.md").read_text()
    rows = [{"step": step, "step_s": 1440.0, "ranks": 4, "device": "cuda"} for step in range(5)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "step": 5}])
    damaged = [
        json.dumps({**rows[0], **damage})
        for damage in (
            {"step_s": "a"},
            {"step": None},
            {"ranks": []},
            {"device": 1},
            {"step_s": 10**400},
        )
    ]
    # The last line was cut by a crash.
    (run / "metrics.jsonl").write_text("\n".join([*damaged, "[" * 100_000, text]) + '{"step": ')
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    # 5 steps x 1440 s x 4 ranks = 8 rank-hours, x 500 W = 4 kWh, x 400 g = 1.6 kg.
    assert "About 1.6 kg CO₂: 8 rank-hours" in card and "4 kWh, at 400 g a kWh" in card
