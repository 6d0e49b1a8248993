"""The launch scripts: what they would start in every surrounding, what they refuse, and two of them
for real.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from patience import patience
from torch.distributed.launcher.api import LaunchConfig

from mmscale.strict_yaml import read_yaml

LAUNCH = ROOT / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
STARTERS = ["local.sh", "torchrun.sh", "accelerate.sh", "deepspeed.sh"]
KEPT = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}


def run(script, *arguments, **variables):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env=KEPT | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def dry(script, *arguments, **variables):
    done = run(script, "--dry-run", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\,", ",")


NAMES = ("NNODES", "NODE_RANK", "RANKS_PER_NODE", "MASTER_ADDR", "MASTER_PORT", "JOB_ID")


def values(names=NAMES, **variables):
    """What env.sh works out."""
    told = " ".join(f"${name}" for name in names)
    done = subprocess.run(
        ["bash", "-euc", f"source {LAUNCH}/env.sh; echo {told}"], env=KEPT | variables,
        capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return dict(zip(names, done.stdout.split(), strict=True))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    checker = shutil.which("shellcheck")
    if checker:
        subprocess.run(
            [checker, "-x", "-e", "SC1091,SC2153,SC2154", str(script)], check=True, cwd=LAUNCH
        )


@pytest.mark.parametrize("script", STARTERS)
def test_help_and_the_same_training(script):
    assert "launch/" in run(script, "--help").stdout
    way = ["fsdp2"] if script == "accelerate.sh" else []
    line = dry(script, *way, "my.yaml", "train.steps=3", RANKS_PER_NODE="4")
    assert (
        "-m mmscale train my.yaml train.steps=3" in line
        or "--module mmscale train my.yaml train.steps=3" in line
    )
    assert " 4 " in line or script == "deepspeed.sh"
    assert line.rstrip().endswith(" --preflight")
    assert "--preflight" not in dry(script, *way, "my.yaml", DOCTOR="0")


def test_a_single_machine():
    assert values()["MASTER_ADDR"] == "127.0.0.1"
    assert values(RANKS_PER_NODE="auto")["RANKS_PER_NODE"].isdigit()


@pytest.mark.parametrize(
    "arguments", [("torchrun.sh",), ("accelerate.sh", "ddp"), ("deepspeed.sh",)]
)
def test_several_machines_are_told_where_to_meet(arguments, tmp_path):
    refused = run(*arguments, "my.yaml", NNODES="2", NODE_RANK="1")
    assert refused.returncode == 2 and "needs MASTER_ADDR" in refused.stderr
    assert (
        refused.stderr.count("\n") == 1
        and "launch/" in run(arguments[0], "--help", NNODES="2").stdout
    )
    (tmp_path / "hosts").write_text("a slots=8\n")
    dry("deepspeed.sh", "my.yaml", NNODES="2", HOSTFILE=str(tmp_path / "hosts"))
    dry("local.sh", "my.yaml", NNODES="2")


def test_ranks_in_torchruns_words(tmp_path):
    put(tmp_path, "nvidia-smi", 'echo "GPU 0: A"; echo "GPU 1: A"\n')
    kubeflow = {"PATH": f"{tmp_path}:{KEPT['PATH']}", "PET_NNODES": "1"}
    for word in ("gpu", "auto"):
        assert values(**kubeflow, PET_NPROC_PER_NODE=word)["RANKS_PER_NODE"] == "2"
    assert int(values(**kubeflow, PET_NPROC_PER_NODE="cpu")["RANKS_PER_NODE"]) >= 1
    refused = run("local.sh", "my.yaml", RANKS_PER_NODE="xpu")
    assert (
        refused.returncode == 2
        and "RANKS_PER_NODE=xpu" in refused.stderr
        and refused.stderr.count("\n") == 1
    )


@pytest.mark.parametrize("script", [*STARTERS, "ray/submit.sh"])
def test_an_exported_cdpath_leads_nowhere_else(script):
    said = subprocess.run(
        ["bash", f"launch/{script}", "--help"], cwd=ROOT, env=KEPT | {"CDPATH": str(ROOT)},
        capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr


def test_gpus_are_counted_as_cuda_does(tmp_path):
    """Those of CUDA_VISIBLE_DEVICES if it is set; slices and what nvidia-smi has to complain of are
    no GPUs.
    """
    put(
        tmp_path,
        "nvidia-smi",
        'printf "GPU 0: A (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-2)\nUnable to ask '
        'one\nGPU 1: A\n"\n',
    )
    tool = {"PATH": f"{tmp_path}:{KEPT['PATH']}"}
    assert values(**tool)["RANKS_PER_NODE"] == "2"
    for visible, count in {
        "": 1, "3": 1, "0,2,5": 3, "GPU-1,GPU-2": 2, "MIG-2,MIG-3": 1, "-1": 1, "1,2,-1,3": 2,
    }.items():  # fmt: skip
        assert values(**tool, CUDA_VISIBLE_DEVICES=visible)["RANKS_PER_NODE"] == str(count), visible
    put(tmp_path, "nvidia-smi", 'echo "NVIDIA-SMI has failed"\nexit 9\n')
    assert values(**tool)["RANKS_PER_NODE"] == "1"


def test_ranks_get_the_time_to_save(monkeypatch):
    """torchrun kills its ranks 30 s after a stop signal unless told otherwise (PyTorch 2.11 always
    does).
    """
    from mmscale.cli.train import start_ranks
    from mmscale.config import TrainConfig

    name = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    by_scripts = values((name,))[name]
    assert TrainConfig().grace_s < int(by_scripts) < 180
    assert values((name,), **{name: "600"})[name] == "600"

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["mmscale", "train", "my.yaml", "--ranks", "2"])
    monkeypatch.setattr(os, "execv", lambda *unused: None)
    monkeypatch.setenv(name, "600")
    start_ranks(2)
    assert os.environ[name] == "600"
    monkeypatch.delenv(name)
    start_ranks(2)
    assert os.environ[name] == by_scripts
    options = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1)
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12):
        assert options.shutdown_timeout == int(by_scripts), "torchrun reads another variable"


def put(folder, name, text):
    """A tool of that name in a folder that is to stand first in PATH."""
    (folder / name).write_text(f"#!/bin/bash\n{text}")
    (folder / name).chmod(0o755)


@pytest.fixture
def slurm(tmp_path):
    """Variables of the second of two nodes, with a scontrol; what it is asked but nodes goes into
    ``asked``.
    """
    put(
        tmp_path,
        "scontrol",
        'case "$*" in\n"show hostnames n[3-4]") printf "n3\nn4\n";;\n"show hostnames n4") echo '
        "n4;;\n"
        '"show node n"?) echo "  NodeAddr=10.1.0.${3#n} NodeHostName=$3";;\n'
        f'*) echo "$*" >>{tmp_path}/asked;;\nesac\n',
    )
    return {
        "PATH": f"{tmp_path}:{KEPT['PATH']}", "SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_JOB_NODELIST": "n[3-4]", "SLURM_GPUS_ON_NODE": "8", "SLURM_RESTART_COUNT": "2",
    }  # fmt: skip


def test_slurm(slurm):
    assert values(**slurm) == {
        "NNODES": "2", "NODE_RANK": "1", "RANKS_PER_NODE": "8", "MASTER_ADDR": "10.1.0.3",
        "MASTER_PORT": "20077",
        "JOB_ID": "slurm-77-2",
    }  # fmt: skip


def test_slurm_ports_are_not_what_linux_gives_to_anybody(slurm):
    for job in ("9999", "12768", "19999", "123456"):
        assert 20000 <= int(values(**slurm | {"SLURM_JOB_ID": job})["MASTER_PORT"]) < 30000


def test_a_slurm_step_smaller_than_its_job(slurm):
    step = slurm | {
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NODELIST": "n4",
        "SLURM_JOB_NUM_NODES": "3",
    }
    found = values(**step)
    assert (found["NNODES"], found["MASTER_ADDR"]) == ("2", "10.1.0.4")
    alone = values(**step | {"SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"})
    assert (alone["NNODES"], alone["MASTER_ADDR"]) == ("1", "127.0.0.1")


def test_slurm_in_a_container(slurm, tmp_path):
    """No scontrol there: the batch script has looked the address up, and where nobody has, one line
    says so.
    """
    (tmp_path / "empty").mkdir()
    inside = slurm | {"PATH": str(tmp_path / "empty")}
    source = [shutil.which("bash"), "-euc", f"source {LAUNCH}/env.sh; echo $MASTER_ADDR"]
    told = subprocess.run(source, env=inside, capture_output=True, text=True, check=False)
    assert (
        told.returncode == 2 and told.stderr.count("\n") == 1 and "set MASTER_ADDR" in told.stderr
    )
    for more in ({"MASTER_ADDR": "10.1.0.3"}, {"SLURM_JOB_NUM_NODES": "1"}):
        subprocess.run(source, env=inside | more, check=True)
    (tmp_path / "empty" / "dirname").symlink_to(shutil.which("dirname"))
    local = [source[0], str(LAUNCH / "local.sh"), "--dry-run", "my.yaml"]
    subprocess.run(local, env=inside, check=True)  # this machine alone needs no address

    put(tmp_path, "srun", f'echo "$MASTER_ADDR" "$@" >{tmp_path}/step')
    left = {
        "SLURM_STEP_NODELIST": "n4",
        "SLURM_STEP_NUM_NODES": "1",
    }  # of the step that sbatch was called in
    done = run(
        "slurm.sbatch", "my.yaml", MMSCALE_LAUNCH=str(LAUNCH), CONTAINER="i.sqsh", **slurm, **left
    )
    assert done.returncode == 0, done.stderr
    step = (tmp_path / "step").read_text()
    assert (
        step.startswith("10.1.0.3 --ntasks-per-node=1 --ntasks=2 ")
        and "--container-image i.sqsh" in step
    )


@pytest.mark.parametrize(
    ("signal", "status", "preempted", "restarts", "requeued"),
    [
        ("USR1", 143, False, 2, True),
        ("USR1", 0, False, 2, False),  # the run is complete
        ("USR1", 2, False, 2, False),  # it never began
        ("USR1", 143, False, 100, False),  # enough
        ("TERM", 143, False, 2, False),  # scancel
        ("TERM", 143, True, 2, True),
        ("", 143, True, 2, True),  # the ranks alone were told
        ("", 1, False, 2, False),  # a failure
    ],
)
def test_what_is_requeued(slurm, tmp_path, signal, status, preempted, restarts, requeued):
    """The step sends the batch script the signal, waits until it comes back, and ends as ``status``
    says.
    """
    wait = (
        f'trap "touch {tmp_path}/passed; exit {status}" {signal}\nkill -{signal} $PPID\n'
        "for ((i = 0; i < 400; i++)); do sleep 0.05; done\n"
    )
    put(tmp_path, "srun", wait if signal else f"exit {status}\n")
    with (tmp_path / "scontrol").open("a") as tool:
        tool.write(
            '[[ $* != "show job 77" ]] || echo "  PreemptEligibleTime=2026-01-01T00:00:00 '
            "PreemptTime="
            f'{"2026-01-02T00:00:00" if preempted else "None"}"\n'
        )
    done = run(
        "slurm.sbatch",
        "my.yaml",
        MMSCALE_LAUNCH=str(LAUNCH),
        **slurm | {"SLURM_RESTART_COUNT": str(restarts)},
    )
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert ("requeue 77" in asked) == requeued, done.stdout + done.stderr
    assert done.returncode == (0 if requeued else status)
    assert (tmp_path / "passed").exists() == bool(signal)


def test_kubernetes():
    jobset = values(
        JOBSET_NAME="job",
        JOB_COMPLETION_INDEX="1",
        NNODES="2",
        JOBSET_RESTART_ATTEMPT="3",
        RANKS_PER_NODE="8",
    )
    assert (jobset["NODE_RANK"], jobset["MASTER_ADDR"], jobset["JOB_ID"]) == (
        "1",
        "job-workers-0-0.job",
        "job-3",
    )
    kubeflow = values(
        PET_NNODES="2", PET_NODE_RANK="1", PET_MASTER_ADDR="a", PET_NPROC_PER_NODE="8"
    )
    assert (kubeflow["NNODES"], kubeflow["MASTER_ADDR"], kubeflow["RANKS_PER_NODE"]) == (
        "2",
        "a",
        "8",
    )


def test_an_elastic_pytorchjob():
    """The operator gives such pods an endpoint, but neither an address nor a rank."""
    path = LAUNCH / "kubernetes" / "pytorchjob.yaml"
    spec = read_yaml(path.read_text())["spec"]
    (container,) = spec["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert (
        container["command"][:2] == ["bash", "launch/torchrun.sh"]
        and spec["runPolicy"]["backoffLimit"]
    )
    said = {
        "PET_NNODES": "1:2", "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": "job-worker-0:23456",
        "PET_NPROC_PER_NODE": "8", "PET_MAX_RESTARTS": "20",
    }  # fmt: skip
    for number, is_host in ((0, 1), (1, 0)):
        pod = f"job-worker-{number}"
        line = dry("torchrun.sh", "my.yaml", **said, HOSTNAME=pod)
        assert line == dry("torchrun.sh", "my.yaml", **said, HOSTNAME="gpu-7", POD_NAME=pod)
        assert "--nnodes 1:2 --nproc-per-node 8 --max-restarts 20" in line
        assert "--rdzv-endpoint job-worker-0:23456" in line and f"is_host={is_host}," in line
    unknown = run("torchrun.sh", "my.yaml", **said, HOSTNAME="gpu-7")
    assert (
        unknown.returncode == 2
        and "set POD_NAME" in unknown.stderr
        and unknown.stderr.count("\n") == 1
    )


def test_torchrun_over_machines():
    first = dry("torchrun.sh", "my.yaml", NNODES="1:2", NODE_RANK="0", MASTER_ADDR="10.0.0.1")
    assert (
        "--nnodes 1:2" in first
        and "--rdzv-endpoint 10.0.0.1:29500" in first
        and "is_host=1," in first
    )
    assert "is_host=0," in dry(
        "torchrun.sh", "my.yaml", NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1"
    )


def test_accelerate_over_machines():
    line = dry(
        "accelerate.sh",
        "zero3",
        "my.yaml",
        NNODES="2",
        NODE_RANK="1",
        MASTER_ADDR="a",
        RANKS_PER_NODE="8",
    )
    assert "--num_processes 16 --num_machines 2 --machine_rank 1 --main_process_ip a" in line
    refused = run("accelerate.sh", "zero9", "my.yaml")
    assert refused.returncode == 2 and "zero9" in refused.stderr


def test_deepspeed(tmp_path):
    # The strategy is the file's, which only mmscale reads; auto becomes zero2 in
    # mmscale/parallel/launcher.py.
    assert "parallel.strategy" not in dry("deepspeed.sh", "my.yaml")
    assert " parallel.strategy=zero3 " in dry("deepspeed.sh", "my.yaml", "parallel.strategy=zero3")
    (tmp_path / "hosts").write_text("a slots=8\n")
    hosts = {"HOSTFILE": str(tmp_path / "hosts")}
    line = dry("deepspeed.sh", "my.yaml", **hosts)
    # DeepSpeed asks the first host for its address; 127.0.0.1 would be every machine's own.
    assert f"--hostfile {tmp_path}/hosts" in line and "--master_addr" not in line
    assert "--master_addr 10.0.0.1" in dry(
        "deepspeed.sh", "my.yaml", **hosts, MASTER_ADDR="10.0.0.1"
    )
    assert run("deepspeed.sh", "my.yaml", HOSTFILE="none").returncode == 2
    over = dry(
        "deepspeed.sh", "my.yaml", NNODES="2", NODE_RANK="1", MASTER_ADDR="a", RANKS_PER_NODE="3"
    )
    assert "--node_rank=1 --master_addr=a" in over
    world = base64.urlsafe_b64decode(over.partition("--world_info=")[2].split()[0])
    assert json.loads(world) == {"0": [0, 1, 2], "1": [0, 1, 2]}
    # On one machine too, where DeepSpeed's runner, once stopped, lets its ranks go on; and on the
    # GPUs that were named.
    for visible, gpus in (("4,GPU-5", ["4", "GPU-5"]), ("4,-1,5", ["4"]), ("", [0])):
        line = dry("deepspeed.sh", "my.yaml", CUDA_VISIBLE_DEVICES=visible)
        assert (
            "deepspeed.launcher.launch" in line and "--node_rank=0 --master_addr=127.0.0.1" in line
        )
        world = base64.urlsafe_b64decode(line.partition("--world_info=")[2].split()[0])
        assert json.loads(world) == {"0": gpus}


@pytest.mark.parametrize("arguments", [("accelerate.sh", "ddp"), ("deepspeed.sh",)])
def test_a_range_of_machines_is_for_torchrun(arguments):
    refused = run(*arguments, "my.yaml", NNODES="1:2")
    assert refused.returncode == 2 and "launch/torchrun.sh" in refused.stderr


def test_sbatch():
    line = run("slurm.sbatch", "my.yaml", "seed=1", DRY_RUN="1", MMSCALE_LAUNCH=str(LAUNCH)).stdout
    assert line.startswith(
        "srun --ntasks-per-node=1 --ntasks=1 --kill-on-bad-exit=1 bash"
    ) and line.rstrip().endswith("torchrun.sh my.yaml seed=1")
    inside = run(
        "slurm.sbatch",
        "my.yaml",
        DRY_RUN="1",
        MMSCALE_LAUNCH=str(LAUNCH),
        CONTAINER="i.sqsh",
        MOUNTS="/d:/d",
    )
    assert "--container-image i.sqsh --container-mounts /d:/d" in inside.stdout
    assert run("slurm.sbatch").returncode == 2
    refused = run("slurm.sbatch", "my.yaml", MMSCALE_LAUNCH="/nowhere")
    assert refused.returncode == 2 and "MMSCALE_LAUNCH" in refused.stderr


@pytest.mark.parametrize(
    "path", sorted((LAUNCH / "kubernetes").glob("*.yaml")), ids=lambda path: path.name
)
def test_manifests_have_what_training_needs(path):
    """Shared memory for the loaders, time to save after SIGTERM, GPUs. Schemas:
    test_manifests.py.
    """
    manifest = read_yaml(path.read_text())
    text = json.dumps(manifest)
    assert manifest["apiVersion"] and manifest["kind"] in ("JobSet", "PyTorchJob")
    assert (
        '"mountPath": "/dev/shm"' in text
        and '"medium": "Memory"' in text
        and "nvidia.com/gpu" in text
    )

    def grace(tree):
        if isinstance(tree, dict):
            yield from (
                [tree["terminationGracePeriodSeconds"]]
                if "terminationGracePeriodSeconds" in tree
                else []
            )
            for branch in tree.values():
                yield from grace(branch)
        elif isinstance(tree, list):
            for branch in tree:
                yield from grace(branch)

    from mmscale.config import TrainConfig

    assert min(grace(manifest)) > TrainConfig().grace_s


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.name
)
def test_accelerate_reads_its_configs(path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).distributed_type is not None


def test_two_machines_on_one(tmp_path, small_run, port):
    """Two launchers with an agent each, as on two machines; they meet at the first one's address
    and train together.
    """
    variables = KEPT | {
        "NNODES": "2", "RANKS_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    folder: Path = tmp_path / "run"
    command = [
        "bash",
        str(LAUNCH / "torchrun.sh"),
        "configs/train/digits.yaml",
        *small_run,
        "train.steps=3",
        f"run.dir={folder}",
    ]
    machines = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables | {"NODE_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    heard = []
    for machine in machines:
        _, told = machine.communicate(timeout=patience(30))
        assert machine.returncode == 0, told[-3000:]
        heard.append(told)
    assert "mmscale: preflight: ok" in heard[0] and "preflight" not in heard[1]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2] and all(row["ranks"] == 2 for row in rows)
