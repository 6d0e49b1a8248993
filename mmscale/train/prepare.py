"""What must exist before the ranks can plan: embedded data, the tokenizer, the counted tokens.

The first rank makes them; the others wait and then read the same files.
"""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from mmscale import prf
from mmscale.checkpoint.run_state import list_checkpoints, read_state
from mmscale.checkpoint.towers import resolve_towers
from mmscale.config import Config
from mmscale.config_file import dump_config
from mmscale.data.index.dataset import Dataset
from mmscale.data.planning.editions import EditionHistory
from mmscale.data.planning.sample_sizes import text_fields
from mmscale.data.planning.step_plan import Plan
from mmscale.data.planning.token_counts import sample_texts
from mmscale.data.tokenizer import Tokenizer
from mmscale.durable import write_durably
from mmscale.errors import UserError
from mmscale.messages import write_line
from mmscale.model.flops import Flops
from mmscale.parallel.ranks import Ranks, on_first_rank
from mmscale.release.init_from import initial_tokenizer
from mmscale.train.classes import find_classes, write_classes

# Of a field's texts: more teaches a tokenizer of any usual size nothing.
_TOKENIZER_BYTES = 32 << 20


def prepare(config: Config, ranks: Ranks, resume_step: int) -> tuple[Tokenizer, Plan]:
    """Tokenizer and plan, equal on every rank; resolves ``config.model``.

    ``resume_step``: steps that are done. Nothing that run.dir says of an earlier start is changed:
        `record` does that.
    """
    plan = on_first_rank(lambda: _first_rank(config, resume_step), ranks)
    tokenizer = Tokenizer.load(Path(config.run.dir) / "tokenizer.json")
    resolve_vocabulary(config, tokenizer)
    classes = [config.model.classes]
    if ranks.world > 1:
        dist.broadcast_object_list(classes, src=0, group=ranks.slow_group)
    config.model.classes = classes[0]
    resolve_towers(config)
    return tokenizer, plan or open_plan(config, tokenizer, resume_step)


def record(config: Config, plan: Plan, ranks: Ranks) -> None:
    """Write what this start is to run.dir, once nothing can refuse it any more: the weights that
    lie there belong to what stood there before."""

    def write() -> None:
        folder = Path(config.run.dir)
        try:
            write_classes(folder, config.model.classes)
            plan.history.save({planned.name: planned.dataset for planned in plan.sets})
            write_durably(folder / "config.yaml", dump_config(config))
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); free space or choose another "
                "run.dir"
            ) from None

    on_first_rank(write, ranks)


def prepare_data(config: Config) -> None:
    """Build the embedded data set the config asks for, where it is missing."""
    if config.data.prepare == "digits":
        from mmscale.demo.digits import build_digits

        roots = {
            Path(shards).parent
            for data_set in config.data.sets.values()
            for shards in data_set.shards
        }
        for root in sorted(roots):
            build_digits(root, progress=config.run.progress)


def prepare_tokenizer(config: Config) -> Tokenizer:
    """The configured tokenizer, or one trained on the texts that the tasks read: all, or of each
    field of a larger set 32 MB from all over it.
    """
    configured = Tokenizer.load(config.data.tokenizer.file) if config.data.tokenizer.file else None
    if config.model.init_from:
        theirs = initial_tokenizer(Path(config.model.init_from))
        if configured is not None and configured.digest != theirs.digest:
            raise UserError(
                f"data.tokenizer.file={config.data.tokenizer.file}: is not the tokenizer of "
                "model.init_from, whose embeddings mean its own tokens; leave it empty"
            )
        return theirs
    if configured is not None:
        return configured
    texts: list[str] = []
    for data_set in config.data.sets.values():
        dataset = Dataset.open(data_set.shards, config.data.cache)
        for field in text_fields(data_set.tasks):
            key = prf.derive_key("tokenizer", field)
            texts.extend(sample_texts(dataset, field, _TOKENIZER_BYTES, key))
        texts += [task.prompt for task in data_set.tasks if task.prompt]
    return Tokenizer.train(texts, config.data.tokenizer.vocab_size)


def run_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer of ``run.dir`` if the run has begun, else the one it would begin with."""
    path = Path(config.run.dir) / "tokenizer.json"
    return Tokenizer.load(path) if path.exists() else prepare_tokenizer(config)


def open_plan(
    config: Config, tokenizer: Tokenizer, resume_step: int, progress: bool = False
) -> Plan:
    """The plan of ``run.dir``, with what its sets held at earlier steps."""
    history = EditionHistory(Path(config.run.dir))
    cost = Flops(config.model, config.media, len(tokenizer)).sequence
    return Plan(config, tokenizer, history, resume_step, progress, cost=cost)


def finished_steps(run_dir: Path) -> int:
    """Steps of the newest checkpoint."""
    done = list_checkpoints(run_dir / "checkpoints")
    return read_state(done[-1]).step if done else 0


def padded_vocabulary(size: int) -> int:
    """Rows of the embedding for so many tokens: a multiple of 64, which matrix units like."""
    return -(-size // 64) * 64


def expected_vocabulary(config: Config) -> int:
    """``model.vocab_size`` before any text was read: of the tokenizer's file or of what the run
    begins with if it is there, else of the size that one is trained to."""
    if config.model.vocab_size:
        return config.model.vocab_size
    tokenizer = known_tokenizer(config)
    size = config.data.tokenizer.vocab_size if tokenizer is None else len(tokenizer)
    return padded_vocabulary(size)


def known_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer of a run if it is there before any text was read: a file, or that of what the
    run begins with.
    """
    path = config.data.tokenizer.file or config.model.init_from
    return prepare_tokenizer(config) if path and Path(path).exists() else None


def resolve_vocabulary(config: Config, tokenizer: Tokenizer) -> None:
    """Set ``model.vocab_size`` from the tokenizer (rounded up to 64) or check that it is large
    enough.
    """
    if config.model.vocab_size == 0:
        config.model.vocab_size = padded_vocabulary(len(tokenizer))
    elif config.model.vocab_size < len(tokenizer):
        raise UserError(
            f"model.vocab_size={config.model.vocab_size} is below the tokenizer's "
            f"{len(tokenizer)}; use 0 to follow it"
        )


def _first_rank(config: Config, resume_step: int) -> Plan:
    folder = Path(config.run.dir)
    prepare_data(config)
    path = folder / "tokenizer.json"
    run_tokenizer(config).save(path)
    resolve_towers(config)
    config.model.classes = find_classes(config)
    # Read back as the other ranks read it, so that all plan with the same tokenizer. What is
    # measured now is kept beside the index, and the others read it there.
    plan = open_plan(config, Tokenizer.load(path), resume_step, config.run.progress)
    if plan.steps is not None and plan.steps < config.train.steps:
        raise UserError(
            f"train.steps={config.train.steps}: after {plan.steps} steps every set was repeated "
            "max_epochs times; lower train.steps, or raise max_epochs of a set"
        )
    _report(plan, config)
    return plan


def _report(plan: Plan, config: Config) -> None:
    """What the run will see, one line per set on stderr."""
    epochs = plan.epochs(config.train.steps)
    for planned in plan.sets:
        sequences = planned.order.sequences_per_epoch
        line = (
            f"mmscale: {planned.name}: {planned.counts.samples:,} of {len(planned.dataset):,} "
            f"samples in {sequences:,} sequences, "
            f"{planned.counts.tokens / (sequences * plan.seq_len):.1%} full, "
            f"{epochs[planned.name]:.1f} epochs in {config.train.steps:,} steps"
        )
        if planned.counts.cut:
            line += (
                f"; {planned.counts.cut:,} samples longer than data.seq_len={plan.seq_len} "
                f"({planned.counts.cut / planned.counts.samples:.1%}) are cut"
            )
        if planned.counts.oversize:
            line += (
                f"; {planned.counts.oversize:,} samples longer than data.seq_len={plan.seq_len} "
                f"are left out; data.sets.{planned.name}.long=split cuts texts instead"
            )
        write_line(line)
