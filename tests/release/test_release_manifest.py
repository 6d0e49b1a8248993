"""What the manifest lists is what is read, and what it says is true."""

import hashlib
import json
import shutil

import pytest
from signed_release import keys as keys
from signed_release import release as release
from signed_release import run_dir as run_dir
from signed_release import signed as signed
from spoiling import first_shard, flip_last_bit

import mmscale
from mmscale.errors import UserError
from mmscale.release.export import export


def test_opening_a_changed_release_is_refused(release):
    mmscale.load(release)
    flip_last_bit(first_shard(release))
    with pytest.raises(UserError, match="was changed, its SHA-256"):
        mmscale.load(release)
    mmscale.load(release, verify=False)  # asked for: only small files are hashed
    (release / "config.json").write_text(
        (release / "config.json").read_text().replace("which", "whach")
    )
    with pytest.raises(UserError, match=r"config\.json: was changed"):
        mmscale.load(release, verify=False)


def unlist(release, old):
    tree = json.loads((release / "manifest.json").read_text())
    del tree["files"][old]
    (release / "manifest.json").write_text(json.dumps(tree))


def empty_manifest(release):
    tree = json.loads((release / "manifest.json").read_text())
    (release / "manifest.json").write_text(json.dumps(tree | {"files": {}}))


UNLISTED = {
    "a manifest of nothing": (empty_manifest, "is not in manifest.json"),
    "config": (lambda r: unlist(r, "config.json"), r"config\.json: is not in"),
    "tokenizer": (lambda r: unlist(r, "tokenizer.json"), r"tokenizer\.json: is not in"),
    "preprocessor": (
        lambda r: unlist(r, "preprocessor_config.json"),
        r"preprocessor_config\.json: is",
    ),
    "index": (lambda r: unlist(r, "model.safetensors.index.json"), r"index\.json: is not in"),
    "shard": (lambda r: unlist(r, first_shard(r).name), r"model-00001.*: is not in"),
    "added weights": (
        lambda r: shutil.copy(first_shard(r), r / "model.safetensors"),
        r"model\.safetensors: is not",
    ),
    "added JSON": (
        lambda r: (r / "processor_config.json").write_text("{}"),
        r"processor_config\.json: is not",
    ),
    "two sets of weights, no manifest": (
        lambda r: (
            shutil.copy(first_shard(r), r / "model.safetensors"),
            (r / "manifest.json").unlink(),
        ),
        r"model\.safetensors: stands beside",
    ),
}


@pytest.mark.parametrize("fault", UNLISTED)
def test_nothing_is_read_that_the_manifest_does_not_list(release, fault):
    spoil, message = UNLISTED[fault]
    spoil(release)
    for verify in (True, False):
        with pytest.raises(UserError, match=message):
            mmscale.load(release, verify=verify)


def test_a_release_copied_over_another_is_not_opened_as_the_older_one(run_dir, release, tmp_path):
    """The index that was left over would name the older weights."""
    export(run_dir, tmp_path / "one file")
    shutil.copytree(tmp_path / "one file", release, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"is not in manifest\.json; remove it, or copy"):
        mmscale.load(release)


def test_without_a_manifest_a_release_is_opened_as_it_is(release):
    (release / "manifest.json").unlink()
    mmscale.load(release)


def test_the_manifest_is_what_sha256sum_says(signed):
    files = json.loads((signed / "manifest.json").read_text())["files"]
    assert files.keys() == {path.name for path in signed.iterdir()} - {"manifest.json", "model.sig"}
    for name, facts in files.items():
        raw = (signed / name).read_bytes()
        assert facts == {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
