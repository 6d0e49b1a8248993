"""Opening the folder of a run: its config, its tokenizer, and a model with the weights of a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mmscale.checkpoint.run_state import checkpoint_fault, list_checkpoints
from mmscale.checkpoint.stored_weights import StoredWeights, fill_from
from mmscale.config import Config
from mmscale.config_file import load_stored_config
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError
from mmscale.messages import warn
from mmscale.model.empty import build_empty
from mmscale.model.fusion import FusionTransformer
from mmscale.predict.predictor import Predictor


def open_run(run_dir: Path, checkpoint: Path | None = None) -> tuple[Config, Tokenizer, Path]:
    """(resolved config, tokenizer, the checkpoint given or else the newest whole one) of a run.

    Every file of the checkpoint is hashed. What is passed over is reported on stderr.

    Raises:
        UserError: the folder is no run, or has no whole checkpoint, or the one given is damaged or
            another run's.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UserError(
            f"{run_dir}: not a run directory (no config.yaml); give the run.dir of a training run"
        )
    if checkpoint is None:
        checkpoints = list_checkpoints(run_dir / "checkpoints")
        if not checkpoints:
            raise UserError(
                f"{run_dir}: has no complete checkpoint; train it with mmscale train "
                f"{run_dir}/config.yaml"
            )
        checkpoint = next(whole_checkpoints(reversed(checkpoints)), None)
        if checkpoint is None:
            raise UserError(
                f"{run_dir}: none of its {len(checkpoints)} checkpoints is whole; restore one, or "
                "train it again"
            )
    elif not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint}: no such checkpoint; those there are lie in {run_dir / 'checkpoints'}"
        )
    elif not _lies_in(checkpoint, run_dir / "checkpoints"):
        raise UserError(
            f"{checkpoint}: is not in {run_dir / 'checkpoints'}; give the run that it belongs to, "
            "with its config"
        )
    elif fault := checkpoint_fault(checkpoint):
        raise UserError(f"{checkpoint}: {fault}; restore it, or give another checkpoint")
    config = load_stored_config(run_dir / "config.yaml")
    tokenizer = Tokenizer.load(run_dir / "tokenizer.json")
    check_vocabulary(config, tokenizer, run_dir / "config.yaml")
    return config, tokenizer, checkpoint


def _lies_in(checkpoint: Path, folder: Path) -> bool:
    return folder.is_dir() and checkpoint.absolute().parent.samefile(folder)


def whole_checkpoints(paths: Iterable[Path]) -> Iterator[Path]:
    """Those whose files are what their states say, hashed one after the other. What is passed over
    is reported on stderr.
    """
    for path in paths:
        fault = checkpoint_fault(path)
        if fault is None:
            yield path
        else:
            warn(f"passed over {path}: {fault}")


def load_run(
    run_dir: Path, checkpoint: Path | None = None, ema: bool = False
) -> tuple[Predictor, Config]:
    """A predictor with fp32 weights on the CPU, in this process alone, whatever number of ranks
    trained it.

    With ``ema``, the moving averages of the weights.

    Raises:
        UserError: the folder is no run, has no checkpoint, or the checkpoint does not fit the
            config.
    """
    config, tokenizer, checkpoint = open_run(run_dir, checkpoint)
    return load_checkpoint(config, tokenizer, checkpoint, ema), config


def load_checkpoint(
    config: Config, tokenizer: Tokenizer, checkpoint: Path, ema: bool = False
) -> Predictor:
    """`load_run` of what `open_run` has opened. Raises `UserError` if the checkpoint does not fit
    the config.
    """
    model = build_empty(config).to_empty(device="cpu")
    names = saved_names(model, config, ema)
    fill_from(
        StoredWeights(checkpoint),
        {names[name]: parameter.data for name, parameter in model.named_parameters()},
    )
    return Predictor(model, tokenizer, config)


def saved_names(model: FusionTransformer, config: Config, ema: bool) -> dict[str, str]:
    """What each parameter is called in a checkpoint; with ``ema``, its average, or itself if it is
    not trained.

    Raises:
        UserError: the run keeps no averages.
    """
    if ema and not config.train.ema:
        raise UserError(
            "--ema: the run kept no moving average of its weights; train with train.ema=0.999"
        )
    return {
        name: f"{'ema' if ema and parameter.requires_grad else 'model'}.{name}"
        for name, parameter in model.named_parameters()
    }


def check_vocabulary(config: Config, tokenizer: Tokenizer, source: Path) -> None:
    """Raise `UserError` if the model has fewer embedding rows than the tokenizer has tokens."""
    if config.model.vocab_size < len(tokenizer):
        raise UserError(
            f"{source}: model.vocab_size={config.model.vocab_size} is below the {len(tokenizer)} "
            "tokens of tokenizer.json; use the one it was trained with"
        )
