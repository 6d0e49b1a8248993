"""`mmscale data inspect`: opens, looks, concludes, writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmscale.data.worker_pool import TaskPool
from mmscale.errors import UserError
from mmscale.inspect.checks import run_checks
from mmscale.inspect.duplicates import add_groups
from mmscale.inspect.named_set import open_sets
from mmscale.inspect.page import render
from mmscale.inspect.report import build_report
from mmscale.inspect.scan_samples import scan_samples
from mmscale.inspect.table import build_table, import_extra, write_sample_table


def inspect(
    sources: list[str],
    html: Path,
    *,
    names: list[str] | None = None,
    sample: int | None = None,
    table: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    pool: TaskPool | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write one HTML page about the indexed shard folders ``sources``; returns the same for
    programs.

    Args:
        sources: folders (or brace patterns) of indexed shards.
        html: the page; a single file that needs no other.
        names: what the sets are called, one for each source; None: as their folders.
        sample: look at so many samples of each set, drawn under ``seed``; None: at all.
        table: also write the measures of every sample to this Parquet file.
        seed: draws the subset and the samples that are shown.
        workers: processes; None: one per core; 0: this one alone. The result does not depend on it.
        pool: who does the work instead; the result does not depend on it either.
        progress: show bars on stderr.

    Raises `UserError` when a source has no index, a file cannot be written, or pandas, pyarrow or
    matplotlib is not installed.
    """
    for module in ("pandas", "pyarrow", "matplotlib", "jinja2"):
        import_extra(module)
    for path in (html, table):
        _check_writable(path)
    sets = open_sets(sources, names or [], sample, seed)
    samples = build_table(scan_samples(sets, workers, progress, pool))
    add_groups(samples)
    run_checks(samples)
    report = build_report(sets, samples, seed, progress)
    if table is not None:
        write_sample_table(samples, table)
    _write(html, render(report))
    return {"html": str(html), "table": str(table) if table else None} | report.as_json()


def _check_writable(path: Path | None) -> None:
    """Before hours of work, not after."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{path}: a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: its folder does not exist; make it first")


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); name another file"
        ) from None
