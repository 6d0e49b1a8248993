"""A run that begins with a Qwen3 folder, trains with averages, is scored and goes back to a Qwen3
folder.
"""

import json

import pytest
import torch
import transformers
from conftest import run_module
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmscale.checkpoint.run_folder import load_run
from mmscale.checkpoint.stored_weights import StoredWeights
from mmscale.data.loading.batch_builder import BatchBuilder

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """A small Qwen3 with a byte-level tokenizer, as transformers saves it."""
    folder = tmp_path_factory.mktemp("qwen3")
    library = Library(models.BPE())
    library.pre_tokenizer, library.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    end = "<|endoftext|>"
    library.train_from_iterator(
        ["a handwritten digit", "three"] * 3,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=[end],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, eos_token=end, pad_token=end
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(vocab_size=len(fast), eos_token_id=fast.eos_token_id, **SIZES)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(qwen3, small_run, small_digits, tmp_path_factory):
    """Its run: captions and labels of the small digits, text alone."""
    folder = tmp_path_factory.mktemp("run") / "run"
    score = (
        f"{{task: classify, shards: {small_digits}/test, input: [text], prompt: digit, "
        "target: json.label}"
    )
    overrides = [
        "data.sets.digits.tasks=[{target: text}, {input: [text], prompt: digit, target: "
        "json.label}]",
        "data.contrast_sequences=1",
        f"model.init_from={qwen3}",
        f"run.dir={folder}",
        f"eval={{digits: {score}}}",
        "model={width: 32, layers: 2, heads: 4, kv_heads: 2, head_dim: 8, hidden: 48, stem_width: "
        "8, embed_dim: 16,"
        f" init_from: {qwen3}}}",
        "train.steps=6",
        "train.precision=fp32",
        "train.ema=0.5",
        "train.optimizer={lr: 3e-2, warmup_steps: 0}",
    ]
    run_module(["mmscale", "train", "configs/train/digits.yaml", *small_run, *overrides])
    return folder


def test_it_goes_back_as_what_the_training_made_of_it(qwen3, trained, tmp_path):
    run_module(
        ["mmscale", "export", str(trained), "--as", "qwen3", "--out", str(tmp_path / "back")]
    )
    before = transformers.Qwen3ForCausalLM.from_pretrained(qwen3)
    after = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    predictor, config = load_run(trained)
    ids = predictor.tokenizer.encode("a handwritten three")
    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "back")("a handwritten three")[
            "input_ids"
        ]
        == ids
    )
    builder = BatchBuilder(1, len(ids), config.media)
    builder.open_sequence()
    builder.open_segment()
    builder.add_text(ids)
    with torch.no_grad():
        ours = predictor.model.logits(predictor.model.hidden(builder.finish())[0])
        torch.testing.assert_close(ours, after(torch.tensor([ids])).logits[0], rtol=1e-4, atol=1e-4)
    name = "model.layers.1.self_attn.q_proj.weight"
    moved = (after.get_parameter(name) - before.get_parameter(name)).abs().max()
    assert 1e-3 < moved < 1.0, "trained, from what it was"


def test_the_averages_are_what_eval_and_export_take_if_asked(trained, tmp_path):
    plain, averaged = load_run(trained)[0].model, load_run(trained, ema=True)[0].model
    stored = StoredWeights(next(iter(sorted((trained / "checkpoints").iterdir()))))
    name = "blocks.0.attention.q_proj.weight"
    assert f"ema.{name}" in stored
    assert not torch.allclose(plain.get_parameter(name), averaged.get_parameter(name), atol=1e-4)
    asked = ["mmscale", "eval", str(trained), "--json"]
    evaluated = [json.loads(run_module([*asked, *more]).stdout) for more in ([], ["--ema"])]
    assert all(
        0 <= score["digits"]["accuracy"] <= 1 and score["digits"]["samples"] == 24
        for score in evaluated
    )
    # Releases of both, scored: the averages of the run are those of its release.
    run_module(["mmscale", "export", str(trained), "--ema", "--out", str(tmp_path / "averaged")])
    again = json.loads(run_module(["mmscale", "eval", str(tmp_path / "averaged"), "--json"]).stdout)
    assert again["digits"]["confusion"] == evaluated[1]["digits"]["confusion"]
    scores = json.loads((trained / "scores.json").read_text())
    assert "--ema" not in json.dumps(scores), (
        "the card reports the weights that are exported by default"
    )
