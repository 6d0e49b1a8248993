"""What a launcher says is honoured or refused, and every launcher starts the same training."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, run_module
from patience import patience

from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.parallel.launcher import apply_launcher_settings

SAID = {"ACCELERATE_MIXED_PRECISION": "no", "WORLD_SIZE": "2"}
FSDP = SAID | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = SAID | {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


def settled(environment, **keys):
    config = Config()
    for key, value in keys.items():
        setattr(config.parallel, key, value)
    apply_launcher_settings(config, environment)
    return config.parallel


@pytest.mark.parametrize(
    ("environment", "key", "value"),
    [
        ({}, "strategy", "auto"),
        (SAID, "strategy", "ddp"),
        (SAID | {"WORLD_SIZE": "1"}, "strategy", "auto"),
        (FSDP, "strategy", "fsdp"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "offload", "cpu"),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "checkpointing", "full"),
        (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, "reshard", False),
        (FSDP | {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "compile", True),
        (ZERO, "strategy", "zero3"),
        (ZERO | {"ACCELERATE_GRADIENT_CLIPPING": "auto"}, "strategy", "zero3"),
        (ZERO | {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload", "cpu"),
        (
            SAID | {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
            "tensor",
            2,
        ),
    ],
)
def test_what_accelerate_says_is_taken(environment, key, value):
    assert getattr(settled(environment), key) == value


def test_deepspeed_means_zero2_only_where_the_config_is_open():
    """What its launcher sets (deepspeed/launcher/launch.py)."""
    environment = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "CROSS_RANK": "0", "CROSS_SIZE": "1"}
    assert settled(environment).strategy == "zero2"
    for strategy in ("zero1", "zero3", "fsdp"):
        assert settled(environment, strategy=strategy).strategy == strategy
    assert settled(environment | ZERO).strategy == "zero3", "accelerate used DeepSpeed's launcher"
    with pytest.raises(UserError, match=r"parallel\.tensor"):
        settled(environment, tensor=2)


@pytest.mark.parametrize(
    ("environment", "keys", "message"),
    [
        (
            FSDP,
            {"strategy": "ddp"},
            r"fsdp_config asks for parallel\.strategy=fsdp, the config says ddp",
        ),
        (
            ZERO,
            {"strategy": "zero2"},
            r"zero_stage: 3 asks for parallel\.strategy=zero3, the config says zero2",
        ),
        (SAID, {"strategy": "fsdp"}, r"neither use_fsdp nor use_deepspeed"),
        (FSDP | {"FSDP_VERSION": "1"}, {}, "set fsdp_version: 2"),
        (
            FSDP | {"ACCELERATE_MIXED_PRECISION": "fp16"},
            {},
            r"mixed_precision=fp16 contradicts train\.precision",
        ),
        (
            FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
            {"checkpointing": "selective"},
            "checkpointing=full",
        ),
        (ZERO | {"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, {}, r"gradient_clipping=0\.5 contradicts"),
        (
            ZERO | {"ACCELERATE_GRADIENT_CLIPPING": "much"},
            {},
            r"gradient_clipping=much contradicts",
        ),
        (
            ZERO
            | {
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
                "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
            },
            {},
            "offload_param_device=none: stage 3 offloads both",
        ),
        (
            ZERO
            | {
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
                "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu",
            },
            {},
            "1 and 2 the optimizer alone",
        ),
        (ZERO | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"}, {}, "leave it out"),
        (
            ZERO | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "absent.json"},
            {},
            r"absent\.json: no DeepSpeed JSON",
        ),
        (SAID | {"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "use_megatron_lm is not offered"),
        (
            {},
            {"strategy": "ddp", "offload": "cpu"},
            r"parallel\.offload=cpu: not with parallel\.strategy=ddp",
        ),
        ({}, {"strategy": "zero1", "tensor": 2}, r"parallel\.tensor=2: needs fsdp"),
        ({}, {"offload": "nvme"}, r"parallel\.offload_dir is empty"),
    ],
)
def test_a_contradiction_names_both_sides(environment, keys, message):
    with pytest.raises(UserError, match=message):
        settled(environment, **keys)


ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
num_machines: 1
num_processes: 2
use_cpu: {cpu}
mixed_precision: 'no'
rdzv_backend: static
same_network: true
machine_rank: 0
main_training_function: main
"""
LAUNCHERS = {
    "mmscale --ranks": (["-m", "mmscale", "train"], ["--ranks", "2"]),
    "torchrun": (
        [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "mmscale",
            "train",
        ],
        [],
    ),
    "accelerate": (
        [
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            "{accelerate}",
            "-m",
            "mmscale",
            "train",
        ],
        [],
    ),
    "deepspeed": (
        [
            "-m",
            "deepspeed.launcher.launch",
            "--world_info={world}",
            "--master_port=0",
            "--module",
            "mmscale",
            "train",
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_starts_the_same_training(name, tmp_path, small_run, port):
    import base64

    (tmp_path / "accelerate.yaml").write_text(ACCELERATE.format(kind="MULTI_GPU", cpu="false"))
    world = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
    before, after = LAUNCHERS[name]
    before = [
        word.format(accelerate=tmp_path / "accelerate.yaml", world=world).replace(
            "port=0", f"port={port}"
        )
        for word in before
    ]
    run = [
        "configs/train/digits.yaml", *small_run, "train.steps=2", "train.precision=fp32",
        f"run.dir={tmp_path / 'run'}",
        *after,
    ]  # fmt: skip
    variables = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *before, *run],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=patience(20),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [0, 1]
    assert all(row["ranks"] == 2 and len(row["rank_work_s"]) == 2 for row in rows), (
        "two ranks trained"
    )
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=0.2)


@pytest.mark.parametrize("strategy", ["zero3"])
def test_one_process_needs_no_launcher(strategy, tmp_path, small_run):
    """DeepSpeed asks for what only launchers set."""
    run = ["configs/train/digits.yaml", *small_run, "train.steps=2", f"run.dir={tmp_path}"]
    run_module(["mmscale", "train", *run, f"parallel.strategy={strategy}"])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["ranks"] for row in rows] == [1, 1]
