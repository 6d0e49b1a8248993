"""Tasks on three machines of a Ray cluster, of which one is lost in the middle."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import IndexPass, build_index
from mmscale.data.index.verify_shards import verify_shards
from mmscale.data.ingest.pack import pack
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.errors import UserError
from mmscale.on_ray.task_pool import ray_pool

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    """Three machines of one CPU each, as processes here."""
    from ray.cluster_utils import Cluster

    folders = (ROOT, ROOT / "tests", Path(__file__).parent, os.environ.get("PYTHONPATH", ""))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", ":".join(map(str, folders)))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
        yield made
        ray.shutdown()
        made.shutdown()


def write(folder: Path) -> None:
    with ShardWriter(folder, samples_per_shard=10) as writer:
        for number in range(120):
            writer.write(f"{number:04d}", {"txt": f"text {number}".encode() * 50})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def slowly(task: tuple[int, Path]) -> tuple[int, str]:
    """Note who works on the task, and give others the time to be seen."""
    number, folder = task
    (folder / f"{number}.{os.getpid()}").touch()
    time.sleep(0.2)
    if number == 99:
        raise UserError("task 99: is refused")
    return number, ray.get_runtime_context().get_node_id()


def test_a_lost_machine_repeats_its_tasks_alone_and_the_index_is_the_same(cluster, tmp_path):
    write(tmp_path / "shards")
    build_index(tmp_path / "shards", MediaConfig(), progress=False)
    expected = content(tmp_path / "shards" / "index")
    tasks = [(number, tmp_path / "seen") for number in range(30)]
    (tmp_path / "seen").mkdir()
    with ray_pool(cluster.address) as pool:
        done, killed = {}, False
        for number, result in pool.run(slowly, tasks, len(tasks)):
            done[number] = result
            if not killed and len({node for _, node in done.values()}) == 3:
                cluster.remove_node(cluster.nodes[0], allow_graceful=False)
                killed = True
        assert killed and [done[number][0] for number in range(30)] == list(range(30))
        begun = [path.name.partition(".")[0] for path in (tmp_path / "seen").iterdir()]
        assert len(set(begun)) == 30 and len(begun) < 45, "not all of it was done again"

        how = IndexPass(pool=pool, every=True)
        build_index(tmp_path / "shards", MediaConfig(), progress=False, how=how)
        assert content(tmp_path / "shards" / "index") == expected
        assert verify_shards(tmp_path / "shards", pool=pool) == []

        with pytest.raises(UserError, match="task 99: is refused"):
            list(pool.run(slowly, [(99, tmp_path / "seen"), (1, tmp_path / "seen")], 2))


def test_pack_on_the_cluster_gives_the_same_shards(cluster, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(25):
        (source / f"{number:02d}.txt").write_text(f"text {number}")
    pack(source, tmp_path / "here", samples_per_shard=5, progress=False)
    with ray_pool(cluster.address) as pool:
        pack(source, tmp_path / "there", samples_per_shard=5, pool=pool, progress=False)
    assert content(tmp_path / "there") == content(tmp_path / "here")
    there, here = (content(tmp_path / name / "index") for name in ("there", "here"))
    assert {**there, "stamps.json": b""} == {**here, "stamps.json": b""}


def test_a_machine_that_lacks_a_module_is_told(cluster, tmp_path, monkeypatch):
    """Here: the one of a plug-in that only the driver can import."""
    (tmp_path / "of_the_driver.py").write_text("def twice(task):\n    return 2 * task\n")
    monkeypatch.syspath_prepend(tmp_path)
    from of_the_driver import twice

    with (
        ray_pool(cluster.address) as pool,
        pytest.raises(UserError, match=r"lacks a module .*of_the_driver.*; install"),
    ):
        list(pool.run(twice, [1, 2], 2))
