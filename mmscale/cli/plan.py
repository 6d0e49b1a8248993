"""`mmscale plan`."""

from __future__ import annotations

import argparse
from typing import Any

from mmscale.cli.verb import add_config, verb
from mmscale.errors import UserError
from mmscale.messages import report, write_line

EPILOG = """\
One micro-batch of the real model runs under the real strategy. Its tensors have no memory, and its
process group pretends to have all ranks. So memory, arithmetic and communication are counted, not
guessed. Times follow from data sheets and from the assumptions, which are printed. It needs no GPU,
no data and no launcher. What storage must give is known of sets whose index is on this machine.

Exit status: 0: it fits; 1: this config will not run, because …; 2: bad input.

examples:
  mmscale plan configs/train/10b.yaml --gpus 64 --gpu h100-80gb
  mmscale plan configs/train/10b.yaml --gpus 512 --gpu h200 --tokens 1e12
  mmscale plan my.yaml model.layers=48 --gpus 8 \\
      --gpu own,memory=48,bf16=180,memory_rate=0.9,link=25,network=3
  mmscale plan my.yaml --gpus 64 --storage-gbps 25 --egress-per-tb 90 --requests-per-million 0.4
"""

_STORAGE = (
    ("--storage-gbps", "G", "Gbit/s that a machine reads from its storage at the most"),
    ("--egress-per-tb", "P", "price of 10^12 bytes that remote shards' servers send"),
    ("--requests-per-million", "P", "price of a million requests to them"),
)


def add(verbs: Any) -> None:
    """Declare the command `plan` and its options."""
    plan = verb(
        verbs, "plan", _plan, "predict memory, time and cost of a config before it runs", EPILOG
    )
    add_config(plan)
    plan.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="number of GPUs (default: 1)"
    )
    plan.add_argument(
        "--gpu",
        default="h100-80gb",
        metavar="KIND",
        help="a100-40gb, a100-80gb, h100-80gb, h200-141gb, b200-180gb, rtx4090-24gb, or your own, "
        "as below (default: h100-80gb)",
    )
    plan.add_argument(
        "--gpus-per-node", type=int, default=8, metavar="N", help="GPUs in one machine (default: 8)"
    )
    plan.add_argument(
        "--tokens",
        type=float,
        metavar="T",
        help="number of tokens to train on (default: those of train.steps)",
    )
    plan.add_argument(
        "--efficiency",
        type=float,
        default=0.55,
        metavar="E",
        help="share of the rated FLOP/s that matrix products reach (default: 0.55)",
    )
    for option, unit, meaning in _STORAGE:
        plan.add_argument(
            option, type=float, default=0.0, metavar=unit, help=f"{meaning} (default: not said)"
        )
    plan.add_argument(
        "--no-search",
        action="store_true",
        help="plan the config as it is, and search for no faster setting",
    )


def _plan(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.capacity.estimate import Assumptions
    from mmscale.capacity.report import describe, facts_of
    from mmscale.capacity.search import Planner
    from mmscale.capacity.storage import Storage, StorageTerms
    from mmscale.checkpoint.towers import resolve_towers
    from mmscale.config_file import load_config
    from mmscale.gpu import find_gpu
    from mmscale.parallel.launcher import apply_launcher_settings
    from mmscale.train.prepare import expected_vocabulary, known_tokenizer

    if arguments.gpus < 1 or arguments.gpus_per_node < 1:
        raise UserError(
            f"--gpus {arguments.gpus} --gpus-per-node {arguments.gpus_per_node}: at least one is "
            "needed"
        )
    if not 0 < arguments.efficiency <= 1:
        raise UserError(f"--efficiency {arguments.efficiency:g}: a share, above 0 and at most 1")
    terms = StorageTerms(
        gbps=arguments.storage_gbps,
        egress_per_tb=arguments.egress_per_tb,
        requests_per_million=arguments.requests_per_million,
    )
    terms.check()
    config = load_config(arguments.config, arguments.overrides, arguments.plugins)
    gpu = find_gpu(arguments.gpu)
    apply_launcher_settings(config, {})  # as training does first; no launcher has said anything yet
    config.model.vocab_size = expected_vocabulary(config)
    resolve_towers(config)
    planner = Planner(
        config=config,
        world=arguments.gpus,
        per_node=arguments.gpus_per_node,
        gpu=gpu,
        assume=Assumptions(arguments.efficiency),
    )
    own = planner.own_way()
    try:
        estimate = planner.evaluate(own)
    except UserError as error:
        write_line(f"this config will not run, because {error}")
        raise SystemExit(1) from None
    tokens = arguments.tokens or float(
        config.train.steps * config.data.seq_len * config.data.sequences
    )
    storage = Storage.look(config, terms, known_tokenizer(config))
    facts = facts_of(planner, own, estimate, tokens, storage)
    if not arguments.json:
        print(describe(planner, facts))
    if not arguments.no_search:
        facts["best"] = _best(planner, tokens, storage, arguments.json)
    if not estimate.fits:
        over = (estimate.needed - gpu.memory) / 1e9
        write_line(
            f"this config will not run, because it needs {estimate.needed / 1e9:.1f} GB per rank, "
            f"{over:.1f} more than a {gpu.name} has"
        )
        if arguments.json:
            import json

            print(json.dumps(facts))
        raise SystemExit(1)
    return facts


def _best(planner: Any, tokens: float, storage: Any, quiet: bool) -> dict[str, Any] | None:
    from mmscale.capacity.report import facts_of

    report("looking for the fastest way that fits")
    candidates = planner.search(lambda line: write_line(f"  {line}"))
    if not candidates:
        if not quiet:
            print(
                "\nno way was found that fits; take more GPUs, a larger kind, or a smaller "
                "data.seq_len"
            )
        return None
    candidate, estimate = candidates[0]
    facts = facts_of(planner, candidate, estimate, tokens, storage)
    if not quiet:
        print(
            f"\nthe fastest way found: {estimate.step_s:.3f} s per step, "
            f"{estimate.needed / 1e9:.1f} GB, {facts['days']:,.1f} days; to paste:"
        )
        for line in candidate.lines(planner.config):
            print(f"  {line}")
    return facts
