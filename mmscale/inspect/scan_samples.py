"""Looks at samples one by one, each decoded once, in as many processes as there are cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmscale.data.index.dataset import Dataset
from mmscale.data.worker_pool import TaskPool
from mmscale.errors import SampleFault, UserError
from mmscale.inspect.named_set import NamedSet
from mmscale.inspect.picture import measure_picture
from mmscale.inspect.sound import measure_sound
from mmscale.inspect.text import EXCERPT, measure_text, scalars

ScannedSample = dict[str, Any]
"""The measures of one sample, by column of the table."""

# Samples handed to a process at a time, and below which starting processes costs more than it
# saves.
_CHUNK = 64
_JOBS = 16  # of one task of a pool
_WORTH_PROCESSES = 256
# Any path will do: it names the sample's JSON document.
_JSON = "json.document"


def scan_samples(
    sets: list[NamedSet], workers: int | None, progress: bool, pool: TaskPool | None = None
) -> Iterator[ScannedSample]:
    """One row for every sample to be looked at, in the order of the sets; the same for any
    ``workers``.

    ``workers`` processes share the work (None: one per core; 0: this one alone), or a ``pool`` of
    others does it. ``progress`` shows a bar.

    Raises `UserError` when the system ends a worker, naming the folder.
    """
    jobs = [
        (number, named_set.looked_at[start : start + _CHUNK])
        for number, named_set in enumerate(sets)
        for start in range(0, len(named_set.looked_at), _CHUNK)
    ]
    total = sum(len(samples) for _, samples in jobs)
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if total > _WORTH_PROCESSES else 0
    names = [named_set.name for named_set in sets]
    datasets = [named_set.dataset for named_set in sets]
    with tqdm(total=total, desc="inspect", unit="sample", disable=not progress) as bar:
        if pool is not None:
            scanned = _in_pool(jobs, names, datasets, pool)
        elif workers:
            scanned = _in_processes(jobs, names, datasets, workers)
        else:
            scanned = _here(jobs, names, datasets)
        for rows in scanned:
            bar.update(len(rows))
            yield from rows


def _here(
    jobs: list[ScanJob], names: list[str], datasets: list[Dataset]
) -> Iterator[list[ScannedSample]]:
    scanner = _Scanner(names, datasets)
    return map(scanner, jobs)


def _in_pool(
    jobs: list[ScanJob], names: list[str], datasets: list[Dataset], pool: TaskPool
) -> Iterator[list[ScannedSample]]:
    """In the order of the jobs; those of a task have one look at the sets."""
    tasks = [jobs[start : start + _JOBS] for start in range(0, len(jobs), _JOBS)]
    scan, waiting = partial(_scan_some, names, datasets), dict[int, list[list[ScannedSample]]]()
    following = 0
    for number, rows in pool.run(scan, tasks, len(tasks)):
        waiting[number] = rows
        while following in waiting:
            yield from waiting.pop(following)
            following += 1


def _scan_some(
    names: list[str], datasets: list[Dataset], jobs: list[ScanJob]
) -> list[list[ScannedSample]]:
    return list(map(_Scanner(names, datasets), jobs))


def _in_processes(
    jobs: list[ScanJob], names: list[str], datasets: list[Dataset], workers: int
) -> Iterator[list[ScannedSample]]:
    # Spawned: this process may hold threads (of torch, of the cache) that a fork would cut off.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (names, datasets)) as pool:
        waiting = [pool.submit(_scan, job) for job in jobs]
        for (number, samples), future in zip(jobs, waiting, strict=True):
            try:
                yield future.result()
            except BrokenProcessPool:
                dataset = datasets[number]
                first, last = dataset.key(int(samples[0])), dataset.key(int(samples[-1]))
                raise UserError(
                    f"{names[number]}: a worker process was ended near samples {first!r} to "
                    f"{last!r}, perhaps for memory; try fewer with --workers 1"
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


class _Scanner:
    """Scans a job's samples; one in each process."""

    def __init__(self, names: list[str], datasets: list[Dataset]) -> None:
        self._names, self._datasets = names, datasets

    def __call__(self, job: ScanJob) -> list[ScannedSample]:
        number, samples = job
        dataset = self._datasets[number]
        facts = {
            field: dataset.facts(field, samples)
            for field in ("image", "audio", "text", "cls", _JSON)
        }
        rows = []
        for place, sample in enumerate(samples.tolist()):
            row: ScannedSample = {
                "set": self._names[number],
                "sample": sample,
                "shard": dataset.shard(sample),
                "key": dataset.key(sample),
            }
            for field, column in facts.items():
                if column["offset"][place]:
                    row |= _scan_field(dataset, field, sample, column[place])
            rows.append(row)
        return rows


ScanJob = tuple[int, NDArray[np.int64]]
"""Number of the set, and samples of it."""

_process_scanner: _Scanner | None = None


def _start(names: list[str], datasets: list[Dataset]) -> None:
    global _process_scanner
    _process_scanner = _Scanner(names, datasets)


def _scan(job: ScanJob) -> list[ScannedSample]:
    assert _process_scanner is not None
    return _process_scanner(job)


def _scan_field(dataset: Dataset, field: str, sample: int, facts: np.void) -> ScannedSample:
    """Columns of one field. A field that cannot be read or decoded has its reason in
    ``<field>_fault``.
    """
    size, a, b = int(facts["size"]), int(facts["a"]), int(facts["b"])
    row: ScannedSample = {}
    kind = field.partition(".")[0]
    if kind == "image":
        row = {"image_bytes": size, "image_width": a, "image_height": b}
    elif kind == "audio":
        row = {"audio_bytes": size, "audio_seconds": a / b, "audio_rate": b}
    elif kind == "text":
        row = {"text_characters": a}
    try:
        if kind == "image":
            return row | measure_picture(dataset.read(field, sample))
        if kind == "audio":
            return row | measure_sound(dataset.read(field, sample), b)
        if kind == "json":
            return {
                f"json.{path}": value
                for path, value in scalars(dataset.read(field, sample)).items()
            }
        assert kind in ("text", "cls"), f"{kind}: no kind of field"
        text = dataset.text(field, sample) or ""
        return row | measure_text(text) if kind == "text" else {"cls": text[:EXCERPT]}
    except SampleFault as fault:
        return row | {f"{kind}_fault": str(fault)}
