"""One thin command per verb. Results go to stdout, progress and complaints to stderr; no logic lives here."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmscale import __version__
from mmscale.errors import UserError

EPILOG = """\
examples:
  mmscale train configs/train/digits.yaml train.steps=200
  torchrun --nproc-per-node 2 -m mmscale train configs/train/digits.yaml parallel.strategy=fsdp
  mmscale eval runs/digits
  mmscale export runs/digits --out release
"""


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exits with 0, with 2 and one line on stderr for bad input; a traceback is a bug."""
    arguments = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], Any] = arguments.run
    try:
        result = run(arguments)
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        print(f"mmscale: error: {'' if rank == '0' else f'rank {rank}: '}{error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("mmscale: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None  # the reader, such as head, has seen enough
    if result is not None and arguments.json:
        print(json.dumps(result, ensure_ascii=False))


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="mmscale",
        description="Train, evaluate and release one fusion transformer over images, text and speech.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmscale {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    data = verbs.add_parser("data", help="prepare, check and look at data").add_subparsers(
        required=True, metavar="COMMAND"
    )
    pack = _verb(data, "pack", _data_pack, "folder, CSV or JSONL of media and text → shards and index")
    pack.add_argument(
        "source", help="a folder of media files, or a .csv or .jsonl with columns image, audio, text, …"
    )
    pack.add_argument("--out", required=True, metavar="DIR", help="empty or new folder for the shards")
    pack.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="default: 1000")
    pack.add_argument(
        "--shuffle-seed", type=int, default=0, metavar="N", help="order of the samples (default: 0)"
    )

    index = _verb(data, "index", _data_index, "index existing shards, anyone's")
    index.add_argument("directory", help="a folder of .tar shards")

    verify = _verb(
        data, "verify", _data_verify, "strict checks of shards against their index; fails on any fault"
    )
    verify.add_argument("directory", help="a folder of indexed shards")

    order = _verb(data, "order", _data_order, "what is seen when, by whom, as JSON lines")
    _add_config(order)
    order.add_argument("--steps", required=True, metavar="A:B", help="steps A up to, not including, B")
    order.add_argument("--world", type=int, default=1, metavar="W", help="number of ranks (default: 1)")
    order.add_argument("--rank", type=int, metavar="R", help="print this rank's share only")

    train = _verb(verbs, "train", _train, "train as a config says; resumes by itself")
    _add_config(train, needed=False)
    train.add_argument(
        "--keys", action="store_true", help="list every config key with its default and meaning"
    )

    evaluate = _verb(verbs, "eval", _evaluate, "score a run or a release on held-out shards")
    evaluate.add_argument("target", help="a run directory or a release folder")
    evaluate.add_argument("--data", metavar="DIR", help="shards to score on instead of the config's")
    evaluate.add_argument(
        "--task", action="append", metavar="NAME", help="score only this one (may be repeated)"
    )

    export = _verb(verbs, "export", _export, "newest checkpoint → a folder of safetensors with a model card")
    export.add_argument("target", metavar="run_dir", help="a run directory")
    export.add_argument("--out", required=True, metavar="DIR", help="folder of the release")
    return parser


def _verb(
    parent: Any, name: str, run: Callable[[argparse.Namespace], Any], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parent.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    parser.add_argument("--json", action="store_true", help="print one machine-readable result on stdout")
    parser.set_defaults(run=run)
    return parser


def _add_config(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    parser.add_argument(
        "config", nargs=None if needed else "?", help="a YAML file, such as configs/train/digits.yaml"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.steps=200 seed=1")


def _data_pack(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.config import MediaConfig
    from mmscale.data.pack import pack

    manifest = pack(
        Path(arguments.source),
        Path(arguments.out),
        shuffle_seed=arguments.shuffle_seed,
        samples_per_shard=arguments.samples_per_shard,
        media=MediaConfig(),
        progress=True,
    )
    return _tell_manifest(manifest, arguments.json)


def _data_index(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.config import MediaConfig
    from mmscale.data.index import build_index

    return _tell_manifest(
        build_index(Path(arguments.directory), MediaConfig(), progress=True), arguments.json
    )


def _tell_manifest(manifest: Any, quiet: bool) -> dict[str, Any]:
    facts = {
        "directory": str(manifest.root),
        "samples": len(manifest),
        "shards": len(manifest.shards),
        "fields": manifest.fields,
        "problems": manifest.problem_count,
        "digest": manifest.digest,
    }
    for problem in itertools.islice(manifest.problems(), 20):
        print(f"mmscale: warning: {problem}", file=sys.stderr)
    if manifest.problem_count > 20:
        reasons = manifest.root / "index" / "problems.jsonl"
        print(f"mmscale: warning: {manifest.problem_count} in all; see {reasons}", file=sys.stderr)
    if not quiet:
        print(f"{facts['samples']} samples in {facts['shards']} shards, fields {', '.join(manifest.fields)}")
        print(f"digest {manifest.digest}")
    return facts


def _data_verify(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.data.index import verify

    faults = verify(Path(arguments.directory))
    if faults:
        for fault in faults:
            print(fault, file=sys.stderr)
        raise UserError(
            f"{arguments.directory}: {len(faults)} faults, listed above; copy the shards again or index anew"
        )
    if not arguments.json:
        print(f"{arguments.directory}: no fault found")
    return {"directory": arguments.directory, "faults": 0}


def _data_order(arguments: argparse.Namespace) -> None:
    from mmscale.config_file import load_config
    from mmscale.data.plan import Plan, check_world
    from mmscale.train.prepare import prepare_data, run_tokenizer

    config = load_config(arguments.config, arguments.overrides)
    first, _, last = arguments.steps.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise UserError(f"--steps {arguments.steps}: write A:B, such as 0:10")
    if arguments.world < 1 or (arguments.rank is not None and not 0 <= arguments.rank < arguments.world):
        raise UserError(f"--rank {arguments.rank} --world {arguments.world}: a rank counts from 0 to W-1")
    check_world(config.data.sequences, arguments.world)
    prepare_data(config)
    plan = Plan(config, run_tokenizer(config))
    for step in range(int(first), int(last)):
        shares = [(r, s) for r in range(arguments.world) for s in plan.share(step, r, arguments.world)]
        for rank, sequence in sorted(shares, key=lambda share: share[1].number):
            if arguments.rank is None or rank == arguments.rank:
                corpus = plan.sets[sequence.set_index].corpus
                keys = [corpus.key(sample) for sample in sequence.samples.tolist()]
                row = {"step": step, "sequence": sequence.number, "rank": rank, "keys": keys}
                print(json.dumps(row, ensure_ascii=False))


def _train(arguments: argparse.Namespace) -> dict[str, Any] | None:
    from mmscale.config_file import describe_keys, load_config

    if arguments.keys:
        for name, default, text in describe_keys():
            print(f"{name} (default {default or 'empty'})\n    {text}")
        return None
    if not arguments.config:
        raise UserError("no config; try: mmscale train configs/train/digits.yaml")
    from mmscale.parallel.ranks import read_environment
    from mmscale.train.loop import train

    result = train(load_config(arguments.config, arguments.overrides))
    if read_environment()[0] != 0:
        return None
    if not arguments.json:
        print(
            f"{result.run_dir}: {result.steps} steps, {result.parameters:,} parameters, {result.seconds:.0f} s"
        )
    return asdict(result)


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.evaluate.run import evaluate, format_table

    scores = evaluate(Path(arguments.target), arguments.data, arguments.task)
    if not arguments.json:
        print(format_table(scores))
    return scores


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.checkpoint.release import export

    facts = export(Path(arguments.target), Path(arguments.out))
    if not arguments.json:
        print(
            f"{arguments.out}: a release of {facts['parameters']:,} parameters; open it with mmscale.load()"
        )
    return facts
