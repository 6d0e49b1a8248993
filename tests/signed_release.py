"""A small signed release, and a copy of it to spoil."""

import shutil

import pytest
from small_run import save_run, small_config, write_shards

from mmscale.release.export import ExportOptions, export
from mmscale.release.signature import make_keys


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_shards(folder / "shards", count=4)
    return save_run(small_config(folder / "run", folder / "shards"), steps=(5, 9))


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("keys") / "mine")


@pytest.fixture(scope="module")
def signed(run_dir, keys, tmp_path_factory):
    out = tmp_path_factory.mktemp("signed") / "release"
    export(run_dir, out, options=ExportOptions(max_shard_bytes=60_000, private_key=keys[0]))
    return out


@pytest.fixture
def release(signed, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(signed, tmp_path / "release")
