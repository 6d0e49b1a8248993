"""Searches on a real Ray: the same training as without it, whoever is killed on the way."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
from conftest import ROOT
from killing import metrics
from plugged import imports, without_plugins, write_house

from mmscale.config import RayConfig
from mmscale.config_file import load_config
from mmscale.errors import UserError
from mmscale.on_ray.connect import import_ray, ray_cluster
from mmscale.train.loop import train
from mmscale.train.run_lock import hold_search
from mmscale.tune.records import Records, Trial
from mmscale.tune.run import tune
from mmscale.tune.space import Space
from mmscale.tune.transfer import _train_larger, check_transfer, transfer_rates
from mmscale.tune.trial import TrialJob

RATE = "train.optimizer.lr"
SPACE = (
    f"tune.space={{{RATE}: {{range: [1.0e-4, 1.0e-1], scale: log}}, "
    "model.image_stem: {choices: [patch, cnn]}}"
)


@pytest.fixture(scope="module")
def ray():
    """Ray on this machine, for all searches of this file."""
    with ray_cluster(RayConfig()) as started:
        yield started


def search_config(folder, small_run, *overrides):
    common = [
        "train.steps=9",
        "train.checkpoint_every=100",
        "tune.trials=4",
        "tune.search=random",
        SPACE,
    ]
    return load_config(
        ROOT / "configs/train/digits.yaml", [*small_run, f"run.dir={folder}", *common, *overrides]
    )


def lines(folder: Path, event: str) -> list[dict]:
    text = (folder / "tune.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, text) if row.get("event") == event]


def scores(folder: Path) -> dict:
    """By (trial, step), each once."""
    rows = lines(folder, "score")
    by_step = {(row["number"], row["step"]): row["score"] for row in rows}
    assert len(by_step) == len(rows)
    return by_step


@pytest.fixture(scope="module")
def calm(ray, small_run, tmp_path_factory):
    """A search that nobody disturbed."""
    folder = tmp_path_factory.mktemp("tune") / "calm"
    return folder, tune(search_config(folder, small_run, "tune.scheduler=none"))


def test_a_trial_is_the_run_its_config_says(calm, small_run, tmp_path):
    folder, result = calm
    assert (result.trials, result.finished, result.steps) == (4, 4, 36)
    assert result.best_score == min(scores(folder).values())
    # best.yaml, taken as it is, trains what the trial trained, bit for bit.
    best = load_config(
        result.best_config, [f"run.dir={tmp_path}/bare", "run.progress=false", "parallel.threads=1"]
    )
    assert best.train.optimizer.lr == result.best_point[RATE]
    train(best)
    bare, trial = metrics(tmp_path / "bare"), metrics(folder / "trials" / result.best_trial)
    assert [row["loss"] for row in bare] == [row["loss"] for row in trial]


def test_the_table_and_the_page(calm):
    folder, result = calm
    table = pandas.read_parquet(folder / "trials.parquet")
    assert list(table["status"]) == ["finished"] * 4 and set(table["model.image_stem"]) <= {
        "patch",
        "cnn",
    }
    assert table.set_index("trial")["score"][result.best_trial] == result.best_score
    page = (folder / "tune.html").read_text()
    assert "Parallel" not in page[:200] and page.count('class="plotly-graph-div"') == 3
    assert f'<tr class="best"><td>{result.best_trial}</td>' in page
    assert "http://" not in page.split("</script>")[-1] and "model.base_width=32" in page


def test_trials_import_the_plug_ins_of_the_searchs_config(ray, small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where Ray's workers, which run already, do not look
    write_house(tmp_path)
    score = "eval.speech={task: transcribe, input: [audio], target: text, normalise: shout}"
    with without_plugins():
        config = search_config(
            tmp_path / "run", small_run, "plugins=house.shout", score, "train.steps=1",
            "tune.trials=1", "tune.scheduler=none",
        )  # fmt: skip
        result = tune(config)
    assert result.finished == 1 and str(os.getpid()) in imports(tmp_path)
    assert len(imports(tmp_path)) > 1
    assert "plugins:\n- house.shout" in Path(result.best_config).read_text()


def test_a_killed_worker_changes_nothing(ray, calm, small_run, tmp_path):
    killed = []

    def kill_worker():
        while not killed:
            time.sleep(0.05)
            if (tmp_path / "run" / "tune.jsonl").exists() and scores(tmp_path / "run"):
                for pid in workers(os.getpid())[:1]:
                    # It may have ended by itself: another time.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)

    thread = threading.Thread(target=kill_worker, daemon=True)
    thread.start()
    # Stops on the way, so that there is something to resume from.
    config = search_config(
        tmp_path / "run",
        small_run,
        "tune.scheduler=asha",
        "tune.first_stop=3",
        "tune.reduction=100",
    )
    result = tune(config)
    assert killed and result.failed == 0
    # reduction=100 stops all but the best at step 3: those that continued end where the calm ones
    # did.
    ends = {key: score for key, score in scores(tmp_path / "run").items() if key[1] == 9}
    assert ends and ends.items() <= scores(calm[0]).items()


def test_a_killed_driver_resumes(ray, calm, small_run, tmp_path):
    folder = tmp_path / "run"
    overrides = [
        *small_run,
        f"run.dir={folder}",
        "train.steps=9",
        "train.checkpoint_every=100",
        SPACE,
    ]
    overrides += ["tune.trials=4", "tune.search=random", "tune.scheduler=none"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "mmscale", "tune", "configs/train/digits.yaml", *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started: list[int] = []
    while driver.poll() is None and not started:
        time.sleep(0.05)
        if (folder / "tune.jsonl").exists() and scores(folder):
            started = workers(driver.pid)
    driver.kill()
    driver.wait()
    assert started
    # At once (mmscale/parallel/launcher_watch.py); Ray's own way takes two seconds, at times more
    # than a minute.
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in started):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.1)
    with (folder / "tune.jsonl").open("a") as file:
        # As a driver leaves it that is killed while it writes.
        file.write('{"event": "score", "num')
    with pytest.raises(UserError, match="--resume"):
        tune(search_config(folder, small_run, "tune.scheduler=none"))
    with pytest.raises(UserError, match=r"another .*space"):
        tune(
            search_config(
                folder,
                small_run,
                "tune.scheduler=none",
                f"tune.space={{{RATE}: {{choices: [0.1]}}}}",
            ),
            resume=True,
        )
    result = tune(search_config(folder, small_run, "tune.scheduler=none"), resume=True)
    assert result.finished == 4 and scores(folder) == scores(calm[0])
    # One more trial of the finished search: the old ones are not run again.
    result = tune(
        search_config(folder, small_run, "tune.scheduler=none", "tune.trials=5"), resume=True
    )
    assert result.trials == 5 and scores(calm[0]).items() <= scores(folder).items()


def test_the_worse_continue_from_the_better_ones_weights(ray, small_run, tmp_path):
    config = search_config(
        tmp_path, small_run, "tune.scheduler=pbt", "tune.first_stop=2", "tune.trials=4",
        "tune.concurrent=4", "ray.cpus=0.5",
        f"tune.space={{{RATE}: {{range: [1.0e-4, 1.0], scale: log}}}}",
        "train.optimizer.warmup_steps=0",
    )  # fmt: skip
    result = tune(config)
    # A trial that continues from one that is ahead leaves out steps; all come to the end.
    assert result.finished == 4
    assert all(metrics(folder)[-1]["step"] == 8 for folder in (tmp_path / "trials").glob("trial-*"))
    exchanges = lines(tmp_path, "exchange")
    assert exchanges, "nobody took over anything"
    known = {}  # a trial that continued from an earlier step is scored there again
    for row in map(json.loads, (tmp_path / "tune.jsonl").read_text().splitlines()):
        if row.get("event") == "score":
            known.setdefault(row["number"], []).append(row["score"])
        elif row.get("event") == "exchange":
            assert min(known[row["parent"]]) <= known[row["number"]][-1]
    last = exchanges[-1]  # whose parent did not change afterwards
    child, parent = (
        metrics(tmp_path / "trials" / f"trial-{last[name]:04d}") for name in ("number", "parent")
    )
    assert child[last["step"] - 1]["loss"] == parent[last["step"] - 1]["loss"]
    assert [row["step"] for row in child] == list(range(9))


def test_trials_that_cannot_be_trained_are_reported_and_passed_over(
    ray, small_run, small_digits, tmp_path, capfd
):
    space = (
        f"tune.space={{{RATE}: {{choices: [1.0e-3, 1.0e+30]}}, model.heads: {{choices: [2, 3]}}}}"
    )
    config = search_config(
        tmp_path, small_run, space, "tune.search=grid", "train.max_skipped=0",
        "train.optimizer.warmup_steps=0", "tune.metric=spoken digits.accuracy",
        "tune.scheduler=none",
    )  # fmt: skip
    config.model.kv_heads = 2
    config.eval["spoken digits"].shards = [f"{small_digits}/test"]
    result = tune(config)
    # Three heads do not share two keys.
    assert (result.trials, result.finished, result.failed) == (2, 1, 1)
    failed = next(row for row in lines(tmp_path, "end") if row["status"] == "failed")
    assert "not finite" in failed["reason"] and "not finite" in capfd.readouterr().err
    assert 0 <= result.best_score <= 1
    wrong = search_config(tmp_path / "4", small_run, "tune.metric=spoken digits.accuracy")
    wrong.eval["spoken digits"].shards = [f"{tmp_path}/nothing"]
    with pytest.raises(UserError, match=r"nothing: neither a folder nor"):
        tune(wrong)
    assert not lines(tmp_path / "4", "trial"), "refused before a trial was begun"


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("nothing.accuracy", r"nothing\.accuracy: neither loss nor"),
        ("spoken digits.acuracy", "spoken digits has no acuracy; it has accuracy, macro_f1"),
        ("speech to text.accuracy", "speech to text has no accuracy; it has wer, cer, exact"),
        ("spoken digits.samples", "spoken digits has no samples; it has"),
        ("image to speech.", "image to speech has no value; it has recall@1, recall@5"),
    ],
)
def test_a_metric_that_is_none_is_refused_before_anything_begins(
    small_run, tmp_path, metric, reason
):
    with pytest.raises(UserError, match=rf"tune\.metric: {reason}"):
        tune(search_config(tmp_path / "run", small_run, f"tune.metric={metric}"))
    assert not (tmp_path / "run").exists()


def test_the_rate_is_tried_on_a_larger_model(ray, small_run, tmp_path):
    """At its half, itself and its double; bare runs of the larger model, each scored."""
    config = search_config(
        tmp_path,
        small_run,
        "tune.scheduler=none",
        "tune.trials=1",
        "tune.transfer=[model.layers=3]",
    )
    result = tune(config)
    with pytest.raises(
        UserError, match=r"tune\.transfer\.model\.layer: unknown key 'model\.layer'"
    ):
        tune(search_config(tmp_path / "wrong", small_run, "tune.transfer=[model.layer=3]"))
    with pytest.raises(
        UserError, match=r"tune\.transfer: model\.kv_heads: 2 does not divide model\.heads=3"
    ):
        tune(
            search_config(
                tmp_path / "wrong", small_run, "tune.transfer=[model.heads=3, model.kv_heads=2]"
            )
        )
    assert not (tmp_path / "wrong").exists(), "refused before anything began"
    rate = result.best_point[RATE]
    assert [row["rate"] for row in result.transfer] == [rate / 2, rate, 2 * rate]
    larger = load_config(tmp_path / "transfer" / "rate-1" / "config.yaml")
    assert larger.model.layers == 3 and larger.train.optimizer.lr == rate
    losses = [row["loss"] for row in metrics(tmp_path / "transfer" / "rate-1")]
    assert result.transfer[1]["score"] == losses[-1] and len(losses) == 9
    assert "with layers=3, the rate" in (tmp_path / "tune.html").read_text()


def test_a_larger_model_that_cannot_be_trained_has_no_score(
    calm, small_run, tmp_path, monkeypatch, capfd
):
    shutil.copytree(calm[0], tmp_path / "run")

    def resume(larger):
        overrides = ["tune.scheduler=none", f"tune.transfer=[{larger}]"]
        return tune(search_config(tmp_path / "run", small_run, *overrides), resume=True)

    result = resume("model.hidden=100000000000000")  # raises in the worker
    assert [row["score"] for row in result.transfer] == [None] * 3
    assert capfd.readouterr().err.count("no score of the larger model at rate") == 3
    assert (
        "could not be trained at any of the rates" in (tmp_path / "run" / "tune.html").read_text()
    )

    def cut_off(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmscale.tune.run.transfer_rates", cut_off)
    for name in ("best.yaml", "trials.parquet", "tune.html"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(KeyboardInterrupt):
        resume("model.layers=3")
    assert all(
        (tmp_path / "run" / name).is_file() for name in ("best.yaml", "trials.parquet", "tune.html")
    )


def test_a_larger_model_that_some_points_rule_out(ray, small_run, tmp_path, capfd):
    """Not refused before the search; it has no score if the best point is one of them."""
    config = search_config(
        tmp_path,
        small_run,
        "tune.transfer=[model.kv_heads=2]",
        "tune.space={model.heads: {choices: [2, 3]}}",
    )
    space = Space(config)
    larger = check_transfer(config, space)
    transfer = transfer_rates(
        ray=ray,
        config=config,
        space=space,
        best=Trial(number=0, point={"model.heads": 3}),
        overrides=larger,
        folder=tmp_path,
    )
    assert [row["score"] for row in transfer.rows()] == [None] * 3
    assert (
        "tune.transfer: model.kv_heads: 2 does not divide model.heads=3" in capfd.readouterr().err
    )


def test_a_folder_of_another_config_or_metric_is_not_believed(small_run, small_digits, tmp_path):
    """Runs of the larger model have the same folders whatever the search's result."""
    job = TrialJob(
        folder=str(tmp_path),
        directory=os.getcwd(),
        metric="loss",
        stops=[2],
        workers=1,
        process={"CPU": 1.0},
        max_failures=0,
        keep_all=False,
    )
    folder = tmp_path / "transfer" / "rate-1"

    def score(rate, job=job):
        config = search_config(tmp_path, small_run, f"{RATE}={rate}", "train.steps=2")
        config.eval["spoken digits"].shards = [f"{small_digits}/test"]
        return _train_larger(config, job, "rate-1")

    first = score(1e-3)
    made = (folder / "checkpoints" / "step-00000002").stat().st_mtime_ns
    with (folder / "stops.jsonl").open("a") as file:
        file.write('{"step": 2, "sc')  # as a trial leaves it that is killed meanwhile
    assert score(1e-3) == first
    assert (folder / "checkpoints" / "step-00000002").stat().st_mtime_ns == made, (
        "what is done stays"
    )
    assert score(1e-1) != first
    assert score(1e-3) == first
    assert 0 <= score(1e-3, replace(job, metric="spoken digits.accuracy")) <= 1 < first


def test_a_second_driver_is_refused_until_the_first_is_gone(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mmscale.tune.run.hold_search", functools.partial(hold_search, patience_s=0.1)
    )
    holds = (
        "import pathlib, sys, time; from mmscale.train.run_lock import hold_search\n"
        "with hold_search(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert first.stdout is not None and first.stdout.readline()
        with pytest.raises(
            UserError, match=rf"another search runs in it \(.* {first.pid}\); stop that one"
        ):
            tune(search_config(tmp_path, small_run))
        assert not (tmp_path / "tune.jsonl").exists()
    finally:
        first.kill()
        first.communicate()
    # It got as far as reading the records.
    with pytest.raises(UserError, match="holds no search yet"):
        tune(search_config(tmp_path, small_run), resume=True)


def test_no_room_is_reported(ray, small_run, tmp_path):
    with pytest.raises(UserError, match="holds no search yet"):
        tune(search_config(tmp_path, small_run), resume=True)
    for workers, needs in ((1, r"1 × \(64 CPU\)"), (2, r"2 × \(64 CPU\) and 1 × \(0.01 CPU\)")):
        config = search_config(
            tmp_path, small_run, "ray.cpus=64", "ray.wait_s=0", f"tune.workers={workers}"
        )
        with pytest.raises(UserError, match=rf"room for {needs}; the cluster has \S+ \d+ CPU"):
            tune(config)  # the second time without --resume: nothing was tried


def remembered(tmp_path, count=9):
    """The records of trials of whom every third was good."""
    records = Records(tmp_path, {}, resume=False)
    for number in range(count):
        records.begin(number, {RATE: 10.0 ** -(1 + number % 3), "model.image_stem": "cnn"})
        for step in (1, 3):
            records.score(number, step, 1.0 + number % 3 + number / 100, 1.0, "here")
        records.end(number, "stopped")
    return Records(tmp_path, {}, resume=True)


def test_a_search_that_came_to_no_trial_is_resumed(tmp_path):
    """launch/ray/rayjob.yaml tries again with --resume where tune.jsonl is there."""
    Records(tmp_path, {"metric": "loss"}, resume=False)
    records = Records(tmp_path, {"metric": "a.accuracy"}, resume=True)
    records.begin(0, {RATE: 0.1})
    assert Records(tmp_path, {"metric": "a.accuracy"}, resume=True).trials == {
        0: Trial(number=0, point={RATE: 0.1})
    }
    (tmp_path / "tune.jsonl").write_text("")
    assert not Records(tmp_path, {}, resume=True).trials


def test_records_hold_any_text_and_a_damaged_line_is_reported(tmp_path):
    job, point = {"config": "a\u2028b\u0085c"}, {"data.tokenizer.file": "\u2029"}
    Records(tmp_path, job, resume=False).begin(0, point)
    path = tmp_path / "tune.jsonl"
    whole = path.read_bytes()
    # A driver was killed within a character.
    path.write_bytes(whole + '{"reason": "é'.encode()[:-1])
    assert Records(tmp_path, job, resume=True).trials == {0: Trial(number=0, point=point)}
    assert path.read_bytes() == whole
    with pytest.raises(UserError, match="holds the trials of a search"):
        Records(tmp_path, job, resume=False)
    path.write_bytes(whole.replace(b"{", b"[", 1))
    for resume in (True, False):
        with pytest.raises(UserError, match=r"tune\.jsonl: line 1 is damaged; restore"):
            Records(tmp_path, job, resume=resume)


@pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
def test_rungs_outlive_their_driver(small_run, tmp_path, scheduler):
    import_ray()
    from mmscale.tune.early_stop import make_scheduler

    config = search_config(tmp_path, small_run, f"tune.scheduler={scheduler}", "tune.first_stop=1")
    space = Space(config)
    records = remembered(tmp_path)
    live = make_scheduler(config, space, Records(tmp_path / "new", {}, resume=False))
    for trial in records.trials.values():
        live._records.trials[trial.number] = Trial(number=trial.number, point=trial.point)
        ray_trial = SimpleNamespace(trial_id=trial.name, config={"trial": {"number": trial.number}})
        live.on_trial_add(None, ray_trial)
        for step, score in trial.scores.items():
            live.on_trial_result(None, ray_trial, {"step": step, "score": score})
    again = make_scheduler(config, space, records)
    decisions = {}
    for number in range(20, 60):
        for scheduler_, kept in ((live, live._records), (again, records)):
            kept.trials[number] = Trial(number=number, point={})
            ray_trial = SimpleNamespace(
                trial_id=f"new-{number}", config={"trial": {"number": number}}
            )
            scheduler_.on_trial_add(None, ray_trial)
            result = {"step": 1, "score": 0.5 + number / 20}
            decision = scheduler_.on_trial_result(None, ray_trial, result)
            decisions.setdefault(number, []).append(decision)
    assert all(before == after for before, after in decisions.values())
    assert {"STOP", "CONTINUE"} == {before for before, _ in decisions.values()}


def test_a_large_grid_is_looked_at_as_far_as_it_is_run(small_run, tmp_path, monkeypatch):
    import_ray()
    from mmscale.tune.search import Search

    axes = ", ".join(
        f"train.optimizer.beta{n}: {{range: [0.1, 0.9], points: 1000}}" for n in (1, 2)
    )
    config = search_config(tmp_path, small_run, "tune.search=grid", f"tune.space={{{axes}}}")
    space, looked_at = Space(config), []
    monkeypatch.setattr(space, "config", looked_at.append)
    records = Records(tmp_path, {}, resume=False)
    search = Search(config, space, records)
    assert search.most == 4 and len(looked_at) == 4
    assert [search.suggest(str(number)) is None for number in range(5)] == [False] * 4 + [True]
    for number in range(4):
        records.end(number, "stopped")
    points = [trial.point for trial in records.trials.values()]
    config.tune.trials = 5  # as with --resume
    more = Search(config, space, records).suggest("4")
    assert more and more["trial"]["number"] == 4 and more["trial"]["point"] not in points


def test_tpe_learns_from_earlier_drivers(small_run, tmp_path):
    import_ray()
    from mmscale.tune.search import Search

    records = remembered(tmp_path, 12)  # the smaller the rate's exponent, the better
    config = search_config(tmp_path, small_run, "tune.search=tpe", "tune.trials=24")
    search = Search(config, Space(config), records)
    assert search.most == 12
    rates = [search.suggest(str(number))["trial"]["point"][RATE] for number in range(12)]
    assert sum(rate > 1e-2 for rate in rates) >= 8  # a third of them by chance
    assert search.suggest("more") is None


def workers(driver: int) -> list[int]:
    """Process numbers of Ray's trials under ``driver``'s Ray."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and b"ray::ImplicitFunc" in read(entry / "cmdline"):
            ancestors, pid = [], int(entry.name)
            while pid > 1:
                pid = int(read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()[1] or 0)
                ancestors.append(pid)
            if driver in ancestors:
                pids.append(int(entry.name))
    return pids


def alive(pid: int) -> bool:
    state = read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return bool(state) and state[0] != b"Z"


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b") ? 0"
