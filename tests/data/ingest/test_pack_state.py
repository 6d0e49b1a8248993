"""Parallel and resumable: the same bytes for any workers, after any kill; what changed is refused
by name.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexed import picture, sound
from packed_sets import read_shards as read_all
from patience import patience
from PIL import Image

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import has_index
from mmscale.data.index.tar_headers import scan
from mmscale.data.index.verify_shards import verify_shards
from mmscale.data.ingest import pack as pack_module
from mmscale.data.ingest.pack_state import FOLDER, PackState
from mmscale.data.worker_pool import WorkerPool
from mmscale.errors import UserError
from tests.data.ingest.test_pack import checksums, quietly


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A table of 20 rows, each with a picture of its own; at two a shard, ten shards."""
    folder = tmp_path / "src"
    folder.mkdir()
    rows = []
    for number in range(20):
        (folder / f"{number}.png").write_bytes(picture(number + 1, 1))
        rows.append({"image": f"{number}.png", "text": f"row {number}"})
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "t.jsonl"


def noise(side: int) -> bytes:
    """A png of about three bytes a pixel."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(buffer, "PNG")
    return buffer.getvalue()


class Stop(Exception):
    """Raised by the tests in the midst of a pack."""


def stop_after(
    monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, shards: int, **options
) -> None:
    """A pack that ends with an exception once so many shards are complete."""
    add = PackState.add

    def add_or_stop(state: PackState, *arguments) -> None:
        if len(state.finished) == shards:
            raise Stop
        add(state, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(PackState, "add", add_or_stop)
        quietly(source, out, samples_per_shard=2, **options)


def rows_of(shard: Path) -> list[int]:
    """The rows (from 0) whose samples a shard holds, in its order."""
    return list(dict.fromkeys(int(member.key) - 1 for member in scan(shard)))


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.tar")}


# -- parallel
# --------------------------------------------------------------------------------------------


def test_shards_are_the_same_for_any_workers(source: Path, tmp_path: Path) -> None:
    for workers in (1, 2, 5):
        quietly(source, tmp_path / f"out-{workers}", samples_per_shard=3, workers=workers)
    expected = checksums(tmp_path / "out-1")
    assert len(expected) == 7
    assert expected == checksums(tmp_path / "out-2") == checksums(tmp_path / "out-5")
    assert verify_shards(tmp_path / "out-5") == []


def test_workers_and_sizes_are_checked(source: Path, tmp_path: Path) -> None:
    for options, words in (
        ({"workers": 0}, "workers: 0 is below 1"),
        ({"samples_per_shard": 0}, "samples_per_shard: 0 is below 1"),
        ({"shuffle_gb": float("nan")}, "shuffle_gb: nan is no size above 0"),
        ({"shuffle_gb": float("inf")}, "shuffle_gb: inf is no size above 0"),
    ):
        with pytest.raises(UserError, match=words):
            quietly(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def fail_at_three(number: int) -> int:
    if number >= 3:
        raise UserError(f"task {number}")
    return number


def test_the_first_failure_is_told_and_nothing_done_is_lost() -> None:
    for workers in (1, 2, 3):
        done = []
        with pytest.raises(UserError, match="task 3"), WorkerPool(workers) as pool:
            for number, result in pool.run(fail_at_three, iter(range(100)), 100):
                assert number == result
                done.append(number)
        assert sorted(done) == [0, 1, 2]


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_line() -> None:
    with (
        pytest.raises(UserError, match=r"a worker process was killed.*fewer workers"),
        WorkerPool(2) as pool,
    ):
        list(pool.run(die, range(8), 8))


# -- resume
# ----------------------------------------------------------------------------------------------


def test_an_interrupted_pack_shows_nothing_and_continues(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quietly(source, tmp_path / "whole", samples_per_shard=2)
    out = tmp_path / "out"
    stop_after(monkeypatch, source, out, shards=4)
    assert [path.name for path in out.iterdir()] == [FOLDER] and not has_index(out)
    assert not list((out / FOLDER).glob("*.tmp"))
    kept = inodes(out / FOLDER)
    assert len(kept) == 4
    stop_after(monkeypatch, source, out, shards=7)
    assert inodes(out / FOLDER).items() > kept.items()
    kept = inodes(out / FOLDER)
    pack_module.pack(source, out, samples_per_shard=2, progress=True)
    assert "7 complete shards are kept" in capsys.readouterr().err
    assert checksums(out) == checksums(tmp_path / "whole")
    assert inodes(out).items() > kept.items()
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".tar") == ["index"]
    with pytest.raises(UserError, match=r"out: already holds shards \(shard-000000\.tar\)"):
        quietly(source, out, samples_per_shard=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shuffle_seed": 1}, "begun with shuffle_seed=0, not 1; "),
        ({"samples_per_shard": 4}, "begun with samples_per_shard=2, not 4; "),
        ({"shuffle_gb": 1.0}, r"begun with shuffle_gb=8\.0, not 1\.0; "),
    ],
)
def test_other_options_are_refused(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, float],
    words: str,
) -> None:
    out = tmp_path / "out"
    stop_after(monkeypatch, source, out, shards=3)
    with pytest.raises(UserError, match=rf"{out}: .*{words}.*remove .*\.pack to start anew"):
        quietly(source, out, **({"samples_per_shard": 2} | options))
    quietly(source, out, samples_per_shard=2, workers=2, media=MediaConfig(max_file_bytes=10_000))
    assert len(read_all(out)) == 20


@pytest.mark.parametrize("change", ["text", "picture", "time"])
def test_a_change_in_what_is_packed_is_refused_elsewhere_it_is_taken(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    out = tmp_path / "out"
    stop_after(monkeypatch, source, out, shards=5)
    packed = rows_of(out / FOLDER / "shard-000002.tar")
    done = {row for path in (out / FOLDER).glob("*.tar") for row in rows_of(path)}
    assert len(packed) == 2 and len(done) == 10
    other = min(set(range(20)) - done)

    def edit(row: int) -> None:
        if change == "text":
            lines = source.read_text().splitlines()
            lines[row] = json.dumps(json.loads(lines[row]) | {"text": "mended"})
            source.write_text("\n".join(lines) + "\n")
        elif change == "picture":
            (source.parent / f"{row}.png").write_bytes(picture(9, 99))
        else:
            os.utime(source.parent / f"{row}.png", (1, 1))

    before = source.read_bytes(), (source.parent / f"{packed[0]}.png").read_bytes()
    times = (source.parent / f"{packed[0]}.png").stat().st_mtime_ns
    edit(packed[0])
    words = (
        rf"{source}: row {packed[0] + 1}: changed since it was packed into "
        r"shard-000002\.tar; restore it"
    )
    with pytest.raises(UserError, match=words):
        quietly(source, out, samples_per_shard=2)
    source.write_bytes(before[0])
    (source.parent / f"{packed[0]}.png").write_bytes(before[1])
    os.utime(source.parent / f"{packed[0]}.png", ns=(times, times))
    edit(other)
    quietly(source, out, samples_per_shard=2)
    sample = read_all(out)[f"{other + 1:08d}"]
    assert (sample["txt"] == b"mended") == (change == "text")
    assert (sample["png"] == picture(9, 99)) == (change == "picture")


def test_a_row_more_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, source, tmp_path / "out", shards=1)
    with open(source, "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(UserError, match="begun with samples=20, not 21; restore the source"):
        quietly(source, tmp_path / "out", samples_per_shard=2)


def test_damage_to_what_was_kept_is_mended_or_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quietly(source, tmp_path / "whole", samples_per_shard=2)
    out, state = tmp_path / "out", tmp_path / "out" / FOLDER
    stop_after(monkeypatch, source, out, shards=4)
    os.truncate(state / "shard-000000.tar", 512)
    (state / "shard-000001.tar").unlink()
    (state / "shard-000009.tar.77.tmp").write_bytes(b"left by a killed worker")
    record = (state / "finished.jsonl").read_bytes()
    (state / "finished.jsonl").write_bytes(record[:-30])  # killed while the fourth was recorded
    stop_after(monkeypatch, source, out, shards=4)
    plan = (state / "plan.json").read_bytes()
    for name, damage in (("plan.json", b"[]"), ("plan.json", b"{"), ("finished.jsonl", b"[]\n")):
        good = (state / name).read_bytes()
        (state / name).write_bytes(damage)
        with pytest.raises(UserError, match=rf"{name}: damaged; remove .*\.pack to start anew"):
            quietly(source, out, samples_per_shard=2)
        (state / name).write_bytes(good)
    (state / "plan.json").write_bytes(plan.replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(UserError, match="begun with version=2, not 1"):
        quietly(source, out, samples_per_shard=2)
    (state / "plan.json").write_bytes(plan)
    quietly(source, out, samples_per_shard=2)
    assert checksums(out) == checksums(tmp_path / "whole")


def test_foreign_shards_are_refused_beside_an_unfinished_pack(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stop_after(monkeypatch, source, out, shards=2)
    for path in (out / "mine.tar", out / "shard-000009.tar", out / "index" / "manifest.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
        with pytest.raises(
            UserError, match=rf"{out}: already holds .*; name an empty folder or remove"
        ):
            quietly(source, out, samples_per_shard=2)
        assert path.read_bytes() == b"mine"
        path.unlink()


def test_two_at_once_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stop_after(monkeypatch, source, out, shards=2)
    plan = json.loads((out / FOLDER / "plan.json").read_text())
    names = {f"shard-{number:06d}.tar": 2 for number in range(10)}
    with (
        PackState(out, plan, names),
        pytest.raises(UserError, match=rf"{out}: another `data pack` writes there"),
    ):
        quietly(source, out, samples_per_shard=2)
    assert len(inodes(out / FOLDER)) == 2


@pytest.mark.parametrize("moved", [0, 4, 10])
def test_a_kill_while_shards_move_out_is_continued(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    quietly(source, tmp_path / "whole", samples_per_shard=2)
    out = tmp_path / "out"

    def publish(state: PackState) -> None:
        for name in sorted(state.finished)[:moved]:
            os.replace(state.folder / name, out / name)
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(PackState, "publish", publish)
        quietly(source, out, samples_per_shard=2)
    assert len(inodes(out)) == moved
    quietly(source, out, samples_per_shard=2)
    assert checksums(out) == checksums(tmp_path / "whole") and verify_shards(out) == []


def test_a_limit_that_left_no_sample_is_raised_without_packing_again(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "clip.wav").write_bytes(sound(16_000, 8000))
    with pytest.raises(UserError, match="no usable sample"):
        quietly(folder, tmp_path / "out", media=MediaConfig(max_audio_s=1.0))
    before = inodes(tmp_path / "out")
    assert len(quietly(folder, tmp_path / "out", media=MediaConfig(max_audio_s=2.0))) == 1
    assert before == inodes(tmp_path / "out") and not (tmp_path / "out" / FOLDER).exists()


# -- SIGKILL
# ---------------------------------------------------------------------------------------------

ROWS, PER_SHARD = 600, 3


def big_table(folder: Path, kind: str) -> Path:
    texts = [f"row {row}" * 20 for row in range(ROWS)]
    pictures = [picture(row % 60 + 1, row % 7 + 1) for row in range(ROWS)]
    if kind == "parquet":
        pq.write_table(
            pa.table({"text": texts, "image": pictures}), folder / "t.parquet", row_group_size=50
        )
        return folder / "t.parquet"
    for row, data in enumerate(pictures):
        (folder / f"{row}.png").write_bytes(data)
    rows = [{"text": text, "image": f"{row}.png"} for row, text in enumerate(texts)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "t.jsonl"


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# A record takes long enough that the test, however late it looks, kills in the middle.
SLOWLY = """
import sys, time
from mmscale.cli import main
from mmscale.data.ingest.pack_state import PackState
add = PackState.add
PackState.add = lambda *all_: (time.sleep(0.02), add(*all_))[1]
main(sys.argv[1:])
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers through /proc")
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_sigkill_and_the_same_command_again(tmp_path: Path, kind: str) -> None:
    (tmp_path / "src").mkdir()
    table, out = big_table(tmp_path / "src", kind), tmp_path / "out"
    # Parquet in portions: a kill falls into one whose scratch files must be made again.
    options = {"samples_per_shard": PER_SHARD, "shuffle_gb": 1e-3}
    quietly(table, tmp_path / "whole", **options)
    command = ["data", "pack", str(table), "--out", str(out), "--json"]
    command += ["--samples-per-shard", str(PER_SHARD), "--shuffle-gb", "1e-3"]
    record = out / FOLDER / "finished.jsonl"
    kept: dict[str, int] = {}
    for kills, more, workers in ((1, 5, 2), (2, 65, 3)):
        wanted = len(kept) + more
        process = subprocess.Popen(
            [sys.executable, "-c", SLOWLY, *command, "--workers", str(workers)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + patience(15)
        while not record.exists() or record.read_bytes().count(b"\n") < wanted:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        workers_then = children_of(process.pid)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL and len(workers_then) >= workers
        while any(is_running(pid) for pid in workers_then):
            assert time.monotonic() < deadline, "a worker outlived its parent"
            time.sleep(0.01)
        assert [path.name for path in out.iterdir()] == [
            FOLDER
        ]  # neither shards nor an index to be seen
        complete = inodes(out / FOLDER)
        # Each kill may fall between a shard's record and its rename; the shard is then written
        # again.
        assert wanted - kills <= len(complete) < ROWS // PER_SHARD
        assert complete.items() > kept.items()
        kept = complete
    last = [sys.executable, "-m", "mmscale", *command, "--workers", "2"]
    done = subprocess.run(last, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["samples"] == ROWS
    assert f"{len(kept)} complete shards are kept" in done.stderr
    assert inodes(out).items() > kept.items()
    assert checksums(out) == checksums(tmp_path / "whole")
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".tar") == ["index"]
    assert verify_shards(out) == []


def test_a_full_disk_is_one_line_and_can_be_mended(source: Path, tmp_path: Path) -> None:
    """Files of at most 30 kB can be written, and one of the pictures is larger."""
    (source.parent / "7.png").write_bytes(noise(120))
    arguments = [str(source), "--out", str(tmp_path / "out"), "--samples-per-shard", "2"]
    for workers in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "mmscale", "data", "pack", *arguments, "--workers", workers],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert (
            f"{tmp_path / 'out'}: File too large; mend that and give the same command again"
            in done.stderr
        )
        assert not list((tmp_path / "out" / FOLDER).glob("*.tmp"))
    assert len(inodes(tmp_path / "out" / FOLDER)) > 0
    assert len(quietly(source, tmp_path / "out", samples_per_shard=2)) == 20


# -- the command line
# ------------------------------------------------------------------------------------


def test_limits_on_the_command_line(tmp_path: Path) -> None:
    folder, out = tmp_path / "src", tmp_path / "out"
    folder.mkdir()
    (folder / "long.wav").write_bytes(sound(8000 * 40, 8000))
    (folder / "wide.png").write_bytes(picture(300, 200))
    (folder / "note.txt").write_text("a note")

    def run(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "mmscale", "data", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    code, output, log = run("pack", str(folder), "--out", str(out), "--max-image-pixels", "59999")
    assert code == 0 and f"{out}: 1 samples in 1 shards" in output
    assert "over media.max_audio_s=30" in log and "over media.max_image_pixels=59999" in log
    code, output, _ = run("index", str(out), "--json", "--max-audio-s", "40")
    assert code == 0 and json.loads(output)["samples"] == 3 and json.loads(output)["problems"] == 0
    assert json.loads(output)["bytes"] == sum(path.stat().st_size for path in out.glob("*.tar"))
    code, _, log = run(
        "pack", str(folder), "--out", str(tmp_path / "o"), "--max-file-bytes", "1000"
    )
    assert code == 2 and "long.wav: " in log and "over media.max_file_bytes=1000" in log
    code, _, log = run("index", str(out), "--max-audio-s", "nan")
    assert code == 2 and "--max-audio-s nan: a limit is above 0" in log
