"""Checkpoints copied to S3 (moto, a real server in a process of its own), fetched back, and a
bucket that is lost.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import boto3
import pytest
import torch
from botocore.exceptions import ClientError
from checkpoints import weights
from conftest import ROOT, run_module
from killing import metrics
from patience import patience
from servers import s3_server
from small_run import one_rank

from mmscale.checkpoint.run_state import RetentionPolicy, RunState, list_checkpoints, read_state
from mmscale.checkpoint.store import CheckpointStore
from mmscale.errors import UserError

CONFIG = "configs/train/digits.yaml"
FORGED = b'{"step": 3, "fingerprint": "", "files": {"../../x": {"bytes": 1, "sha256": ""}}}'
TASKS = "data.sets.digits.tasks=[{input: [image], prompt: digit, target: json.label}]"
TENSORS = {"model.a": torch.arange(6.0).view(2, 3), "model.b": torch.ones(5)}


@pytest.fixture(scope="module")
def s3():
    """A client of the server; the environment names it for fsspec, too."""
    variables = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with s3_server() as endpoint:
        variables["AWS_ENDPOINT_URL"] = endpoint
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        yield boto3.client("s3")
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture
def bucket(s3, request):
    name = request.node.name.replace("_", "-")[:60].rstrip("-").lower()
    s3.create_bucket(Bucket=name)
    return name


def objects(s3, bucket):
    return {
        entry["Key"]: entry["Size"]
        for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    }


def lose(s3, bucket):
    """Take the bucket away, whoever is writing into it meanwhile."""
    while True:
        for name in objects(s3, bucket):
            s3.delete_object(Bucket=bucket, Key=name)
        try:
            s3.delete_bucket(Bucket=bucket)
            return
        except ClientError as error:
            if error.response["Error"]["Code"] != "BucketNotEmpty":
                raise


def save(store, step, loss=1.0):
    store.save(
        {name: tensor + step for name, tensor in TENSORS.items()},
        RunState(step=step, fingerprint="f" * 64, loss=loss),
    )
    store.wait()


def steps(s3, bucket):
    return sorted(
        int(name[-19:-11]) for name in objects(s3, bucket) if name.endswith("/state.json")
    )


def test_copies_are_the_files_and_stay_as_long_as_they(s3, bucket, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    with one_rank():
        store = CheckpointStore(folder, RetentionPolicy(1, best=True), f"s3://{bucket}/a/run")
        assert store.newest() is None and objects(s3, bucket) == {}
        for step, loss in ((2, 3.0), (4, 0.5), (6, 0.7), (8, 0.9)):
            save(store, step, loss)
            assert not store.failure
        assert (
            [read_state(path).step for path in list_checkpoints(folder)]
            == steps(s3, bucket)
            == [4, 8]
        )
    local = {
        f"a/run/checkpoints/{path.relative_to(folder)}": path
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert local.keys() == objects(s3, bucket).keys()
    for name, path in local.items():
        assert s3.get_object(Bucket=bucket, Key=name)["Body"].read() == path.read_bytes()


def test_the_newest_whole_copy_is_fetched_and_the_others_are_told(s3, bucket, tmp_path, capfd):
    folder, url = tmp_path / "run" / "checkpoints", f"s3://{bucket}/run"
    with one_rank():
        store = CheckpointStore(folder, RetentionPolicy(9), url)
        for step in range(1, 6):
            save(store, step)
        kept = {path.name: path.read_bytes() for path in (folder / "step-00000002").iterdir()}
        shard = next(name for name in kept if name.endswith(".safetensors"))
        place = "run/checkpoints/step-0000000{}/{}".format
        data = bytearray(s3.get_object(Bucket=bucket, Key=place(5, shard))["Body"].read())
        data[-1] ^= 1
        s3.put_object(Bucket=bucket, Key=place(5, shard), Body=bytes(data))
        s3.delete_object(Bucket=bucket, Key=place(4, shard))
        s3.put_object(Bucket=bucket, Key=place(3, "state.json"), Body=FORGED)
        s3.put_object(Bucket=bucket, Key=place(7, shard), Body=b"a save that was killed")
        shutil.rmtree(folder)
        capfd.readouterr()
        newest = CheckpointStore(folder, RetentionPolicy(9), url).newest()
        assert newest == folder / "step-00000002"
        assert {path.name: path.read_bytes() for path in newest.iterdir()} == kept
        message = capfd.readouterr().err
        for step, reason in (
            (5, "another SHA-256"),
            (4, "no such file"),
            (3, "no name of a tensor file"),
        ):
            assert f"passed over {url}/checkpoints/step-0000000{step}: " in message
            assert reason in message
        assert "step-00000007" not in message
        assert [path.name for path in folder.iterdir()] == [newest.name]
        save(store, 8)
        assert not [name for name in objects(s3, bucket) if "step-00000007" in name], (
            "leftovers are removed"
        )


def test_a_damaged_local_one_is_fetched_again_and_a_missing_copy_made(s3, bucket, tmp_path):
    folder, url = tmp_path / "run" / "checkpoints", f"s3://{bucket}/run"
    with one_rank():
        store = CheckpointStore(folder, RetentionPolicy(9), url)
        save(store, 3)
        shard = next((folder / "step-00000003").glob("*.safetensors"))
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-1] + b"?")
        assert store.newest() == shard.parent and shard.read_bytes() == whole
        copies = objects(s3, bucket)
        for name in copies:
            s3.delete_object(Bucket=bucket, Key=name)
        assert store.newest() == shard.parent
        store.restore(shard.parent, {name: tensor.clone() for name, tensor in TENSORS.items()})
        store.copy_found()
        store.wait()
        assert objects(s3, bucket) == copies


def test_a_copy_that_was_passed_over_takes_no_place(s3, bucket, tmp_path):
    folder, url = tmp_path / "run" / "checkpoints", f"s3://{bucket}/run"
    with one_rank():
        store = CheckpointStore(folder, RetentionPolicy(9), url)
        for step in (4, 6):
            save(store, step)
        shard = next((folder / "step-00000006").glob("*.safetensors"))
        flipped = shard.read_bytes()[:-1] + b"?"
        shard.write_bytes(flipped)
        s3.put_object(
            Bucket=bucket, Key=f"run/checkpoints/step-00000006/{shard.name}", Body=flipped
        )
        store = CheckpointStore(folder, RetentionPolicy(1), url)
        assert store.newest() == folder / "step-00000004"
        store.restore(
            folder / "step-00000004", {name: tensor.clone() for name, tensor in TENSORS.items()}
        )
        store.copy_found()
        store.wait()
        assert steps(s3, bucket) == [4, 6], "a start alone removes nothing"
        save(store, 5)
        assert not store.failure and steps(s3, bucket) == [5]
        shutil.rmtree(folder)
        assert CheckpointStore(folder, RetentionPolicy(1), url).newest() == folder / "step-00000005"


def test_a_store_that_cannot_be_used_is_told_at_the_start(s3, tmp_path, capfd):
    with one_rank():
        with pytest.raises(
            UserError, match=r"^s3://nobody-has-this/run: cannot be used \(.*; mend run.copy_to"
        ):
            CheckpointStore(
                tmp_path / "checkpoints", RetentionPolicy(1), "s3://nobody-has-this/run"
            ).newest()
        save(CheckpointStore(tmp_path / "checkpoints", RetentionPolicy(1)), 3)
        store = CheckpointStore(
            tmp_path / "checkpoints", RetentionPolicy(1), "s3://nobody-has-this/run"
        )
        assert store.newest() is not None, "a checkpoint is there"
        assert "warning: s3://nobody-has-this/run: cannot be used" in capfd.readouterr().err
        for url in ("http://a/b", "file:///tmp", "hf://a/b", "s3:bucket"):
            with pytest.raises(UserError, match=r"run\.copy_to"):
                CheckpointStore(tmp_path / "checkpoints", RetentionPolicy(1), url)


def test_a_bucket_lost_in_mid_run_and_a_run_folder_lost_after_it(s3, bucket, tmp_path, small_run):
    """Two ranks. The bucket is lost: the run continues, warns, and ends with an error. It comes
    back: all is copied. The folder is lost: a start fetches everything, and continues as the folder
    would have."""
    folder, url = tmp_path / "run", f"s3://{bucket}/run"
    command = [
        "mmscale",
        "train",
        CONFIG,
        *small_run,
        "train.precision=fp32",
        "train.checkpoint_every=2",
        TASKS,
    ]
    copied = [*command, f"run.dir={folder}", f"run.copy_to={url}", "train.steps=24"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    process = subprocess.Popen(
        [sys.executable, "-m", *torchrun, *copied], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    limit = time.monotonic() + patience(20)
    while not steps(s3, bucket):
        assert process.poll() is None and time.monotonic() < limit, process.stderr.read()[-3000:]
        time.sleep(0.02)
    lose(s3, bucket)
    _, message = process.communicate(timeout=patience(30))
    assert process.returncode != 0
    assert (
        f"warning: {url}: not copied (" in message and "the run continues, and saves in" in message
    )
    assert (
        "the newest checkpoint could not be copied" in message
        and "Traceback (most recent" not in message.split("error:")[0]
    )
    assert (
        len(metrics(folder)) == 24
        and read_state(list_checkpoints(folder / "checkpoints")[-1]).step == 24
    )

    s3.create_bucket(Bucket=bucket)
    run_module(copied, ranks=1)
    assert steps(s3, bucket) == [24]
    assert {"run/config.yaml", "run/tokenizer.json", "run/data/history.json"} <= objects(
        s3, bucket
    ).keys()

    kept = tmp_path / "kept"
    shutil.move(folder, kept)
    more = [*command, "train.steps=28", "train.optimizer.schedule=constant"]
    done = run_module([*more, f"run.dir={folder}", f"run.copy_to={url}"], ranks=1)
    assert f"fetched {url}/checkpoints/step-00000024" in done.stderr
    assert [row["step"] for row in metrics(folder)] == [24, 25, 26, 27] and steps(s3, bucket)[
        -1
    ] == 28
    run_module([*more, f"run.dir={kept}"], ranks=1)
    ours, theirs = weights(folder), weights(kept)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    history = json.loads((folder / "data" / "history.json").read_text())
    assert [entry["from_step"] for entry in history["digits"]] == [0]
