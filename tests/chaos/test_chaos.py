"""One run of `tiny` on two ranks, killed again and again: nothing is lost, nothing is left, nothing
is seen twice.

`make chaos` kills a hundred times; continuous integration ``MMSCALE_CHAOS_KILLS`` = 3 times.
``MMSCALE_CHAOS_SEED`` draws other moments.
"""

import json
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from conftest import ROOT, run_module
from killed_run import KilledRun
from killing import metrics

from mmscale.checkpoint.run_state import list_checkpoints, stored_files

KILLS = int(os.environ.get("MMSCALE_CHAOS_KILLS", "3"))
SEED = os.environ.get("MMSCALE_CHAOS_SEED", "7")
STEPS = 10 + 3 * KILLS
# What torchrun, torch and multiprocessing keep in $TMPDIR, and cannot remove when they are killed.
DECLARED = re.compile(r"(torchelastic|torchinductor)_\w+|pymp-\w+")


@pytest.fixture(scope="module")
def chaos(tmp_path_factory, small_digits):
    """(the undisturbed run, the killed one, the arguments of both, files of the data set between
    the two).
    """
    root = tmp_path_factory.mktemp("chaos")
    command = [
        "train", "configs/train/digits.yaml", "data.prepare=",
        f"data.sets.digits.shards={small_digits}/train",
        "data.tokenizer.vocab_size=320", "data.seq_len=128", "data.sequences=4", "data.workers=1",
        "data.sets.digits.tasks=[{input: [image], prompt: digit, target: json.label}]",
        f"train.steps={STEPS}", "train.checkpoint_every=2", "train.keep_last=2", "train.grace_s=10",
        "train.optimizer={lr: 1e-3, warmup_steps: 2}", "run.progress=false",
        "run.tensorboard=false",
        "parallel.timeout_s=60",
    ]  # fmt: skip
    calm = root / "calm"
    run_module(["mmscale", *command, f"run.dir={calm}"], ranks=2, needs=300)
    before = files(small_digits)
    killed = KilledRun(
        command=[*command, f"run.dir={root / 'run'}"],
        run_dir=root / "run",
        scratch=root / "scratch",
        kills=KILLS,
        seed=SEED,
    )
    killed.run()
    print(f"\nkills by moment and target, of {KILLS}:")
    for (moment, target), count in sorted(killed.counts().items()):
        print(f"  in a {moment}: {target}: {count}")
    return calm, killed, command, before


def files(folder: Path) -> set[str]:
    """Every file below, by its path."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_end_is_that_of_the_undisturbed_run_to_the_bit(chaos):
    calm, killed, *_ = chaos
    assert len(killed.told) == KILLS
    ends = [list_checkpoints(folder / "checkpoints")[-1] for folder in (calm, killed.run_dir)]
    assert ends[0].name == ends[1].name == f"step-{STEPS:08d}"
    ours, theirs = stored_files(ends[1]), stored_files(ends[0])
    assert ours == theirs and len(ours) == 2, "weights and moments have the same SHA-256"
    told, expected = metrics(killed.run_dir), metrics(calm)
    assert [row["step"] for row in told] == list(range(STEPS))
    for one, other in zip(told, expected, strict=True):
        for name in ("loss", "losses", "grad_norm", "tokens", "bad_samples"):
            assert one[name] == other[name], f"step {one['step']}: {name}"


def test_what_the_killed_ranks_really_saw_is_every_sample_once_an_epoch(chaos):
    _, killed, command, _ = chaos
    seen = defaultdict(dict)  # step: start: rank: {sequence: keys}
    starts = set()
    for rank in (0, 1):
        for line in (killed.scratch / "records" / f"rank-{rank}.jsonl").read_text().splitlines():
            row = json.loads(line)
            starts.add(row["start"])
            seen[row["step"]].setdefault(row["start"], {})[rank] = dict(row["sequences"])
    planned = defaultdict(dict)  # step: sequence: keys
    order = run_module(
        [
            "mmscale",
            "data",
            "order",
            *command[1:],
            f"run.dir={killed.run_dir}",
            "--steps",
            f"0:{STEPS}",
        ]
    )
    for row in map(json.loads, order.stdout.splitlines()):
        planned[row["step"]][row["sequence"]] = row["keys"]

    lived = []  # keys of the steps that the final weights have learnt from, in their order
    for step in range(STEPS):
        for start, ranks in seen[step].items():
            for held in ranks.values():
                for sequence, keys in held.items():
                    assert keys == planned[step][sequence], f"start {start} saw another step {step}"
        # Earlier starts took the step too, but their weights were lost with them.
        last = seen[step][max(seen[step])]
        both = {**last[0], **last[1]}
        assert len(both) == len(last[0]) + len(last[1]) and both.keys() == planned[step].keys()
        lived += [both[sequence] for sequence in sorted(both)]
    history = json.loads((killed.run_dir / "data" / "history.json").read_text())
    length = history["digits"][0]["sequences_per_epoch"]
    epochs = len(lived) // length
    assert epochs >= 2
    samples = {key for keys in lived for key in keys}
    for epoch in range(epochs):
        counted = Counter(
            key for keys in lived[epoch * length : (epoch + 1) * length] for key in keys
        )
        assert counted == Counter(samples), f"epoch {epoch}"
    repeated = sum(len(seen[step]) - 1 for step in range(STEPS))
    print(
        f"\n{len(starts)} starts took steps, {repeated} steps were taken again, {epochs} whole "
        "epochs"
    )


def test_nothing_is_left_behind(chaos):
    calm, killed, _, before = chaos
    assert killed.orphans == []
    said = (killed.scratch / "said.txt").read_text()
    assert f'File "{ROOT}/mmscale/' not in said, "every kill is told in a line, not by a traceback"
    extra = {name for name in files(killed.run_dir) - files(calm) if not name.startswith("hang/")}
    assert extra == set() and files(calm) <= files(killed.run_dir)
    data = next(one for one in killed.command if one.startswith("data.sets.digits.shards="))
    assert files(Path(data.partition("=")[2]).parent) == before
    left = {path.name for path in (killed.scratch / "tmp").iterdir()}
    assert {name for name in left if not DECLARED.fullmatch(name)} == set()
    shared = {path.name for path in Path("/dev/shm").iterdir()}
    assert not [
        name for name in shared if any(name.startswith(f"torch_{pid}_") for pid in killed.pids)
    ]
