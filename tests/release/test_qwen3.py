"""The text path is the Qwen3 architecture: the same logits and gradients as `transformers` from the
same weights.
"""

import json

import pytest
import torch
import transformers
from checkpoints import relist
from packings import MEDIA, model_config, random_batch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import save_run, small_config, write_shards
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmscale.checkpoint.run_folder import load_run
from mmscale.cli import main
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.special_tokens import END, SPECIAL_TOKENS
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.predict.decoding import Decoding
from mmscale.predict.generate import Generator
from mmscale.release import weight_writer
from mmscale.release.qwen3 import (
    SHIFT,
    check_form,
    check_qwen3,
    export_qwen3,
    load_qwen3,
    qwen3_name,
    write_qwen3,
)


def qwen3(**changes):
    sizes = {
        "vocab_size": 59, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48,
        "tie_word_embeddings": True, "max_position_embeddings": 128, "rope_theta": 1000.0,
        "initializer_range": 0.2, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norm weights too must differ from one
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A Qwen3 of random weights, its folder, and our model that began with it."""
    theirs, folder = qwen3(), tmp_path_factory.mktemp("qwen3")
    theirs.save_pretrained(folder)
    config = model_config(layers=3, rope_theta=1000.0, init_from=str(folder))
    ours = FusionTransformer(config, MEDIA).eval()
    initialise(ours, config, 0)
    load_qwen3(ours, config)
    return theirs, folder, ours


def segments():
    return [
        torch.randint(0, 59, (n,), generator=torch.Generator().manual_seed(n)).tolist()
        for n in (9, 4, 17, 1)
    ]


def test_logits_and_gradients_of_packed_segments_are_those_of_each_alone(pair):
    theirs, _, ours = pair
    builder = BatchBuilder(1, 40, MEDIA)
    builder.open_sequence()
    for ids in segments():
        builder.open_segment()
        builder.add_text([SHIFT + token for token in ids])
    hidden = ours.hidden(builder.finish())[0]
    probe = torch.randn(59, generator=torch.Generator().manual_seed(5))
    start, total, expected_total = 0, 0.0, 0.0
    for ids in segments():
        logits = ours.logits(hidden[start : start + len(ids)])[:, SHIFT : SHIFT + 59]
        expected = theirs(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        total, expected_total = (
            total + (logits.tanh() @ probe).sum(),
            expected_total + (expected.tanh() @ probe).sum(),
        )
        start += len(ids)
    total.backward()
    expected_total.backward()
    their_gradients = dict(theirs.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        if (theirs_name := qwen3_name(name)) is None:
            continue
        gradient = (
            parameter.grad[SHIFT : SHIFT + 59] if name == "embedding.weight" else parameter.grad
        )
        reference = their_gradients[theirs_name].grad
        scale = reference.abs().max()
        torch.testing.assert_close(
            gradient / scale, reference / scale, rtol=1e-4, atol=1e-4, msg=name
        )
        compared += 1
    assert compared == len(their_gradients)


def test_generation_with_our_cache_is_theirs_with_their_cache(pair):
    theirs, _, ours = pair
    ids = segments()[0]
    prompt = torch.tensor([ids])
    settings = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
    expected = theirs.generate(prompt, max_new_tokens=12, do_sample=False, **settings)[
        0, len(ids) :
    ]
    builder = BatchBuilder(1, len(ids), MEDIA)
    builder.open_sequence()
    builder.open_segment()
    builder.add_text([SHIFT + token for token in ids])
    allowed = torch.zeros(ours.config.vocab_size, dtype=torch.bool)
    allowed[SHIFT : SHIFT + 59] = True
    with torch.inference_mode():
        (hypotheses,) = Generator(ours, allowed, SHIFT + 2, Decoding(), None).answer(
            builder.finish(), [0], [12]
        )
    answer = [token - SHIFT for token in hypotheses[0].ids]
    answer += [2] if hypotheses[0].ended else []
    assert answer == expected.tolist()


class Held:
    """Weights in memory, as `write_weights` reads them."""

    def __init__(self, named):
        self._named = named

    def shape(self, name):
        return tuple(self._named[name].shape)

    def rows(self, name, start, stop):
        return self._named[name][start:stop]


def test_written_back_it_is_a_qwen3_folder_with_the_same_outputs(pair, tmp_path):
    _, _, ours = pair
    tokenizer = Tokenizer.train(["a few words"], 300)
    named = {
        name: parameter.data for name, parameter in ours.named_parameters() if qwen3_name(name)
    }
    same = {name: name for name in named}
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    write_qwen3(
        config=ours.config,
        source=Held(named),
        names=same,
        shapes=shapes,
        tokenizer=tokenizer,
        folder=tmp_path,
        dtype="float32",
        max_shard_bytes=20_000,
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[SHIFT + token for token in segments()[2]]])
    builder = BatchBuilder(1, ids.shape[1], MEDIA)
    builder.open_sequence()
    builder.open_segment()
    builder.add_text(ids[0].numpy())
    with torch.no_grad():
        torch.testing.assert_close(
            ours.logits(ours.hidden(builder.finish())[0]),
            again(ids).logits[0],
            rtol=1e-4,
            atol=1e-4,
        )
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read("a few words")["input_ids"] == tokenizer.encode("a few words")


def test_what_does_not_fit_is_told_with_the_lines_that_do(pair, tmp_path):
    _, folder, ours = pair
    with pytest.raises(UserError, match=r"set model\.width=32 model\.layers=3"):
        check_qwen3(folder, model_config(width=64, rope_theta=1000.0))
    untied = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(untied))
    with pytest.raises(UserError, match="only tied embeddings"):
        check_qwen3(tmp_path, ours.config)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    config = model_config(layers=3, rope_theta=1000.0, init_from=str(tmp_path))
    with pytest.raises(UserError, match="no safetensors"):
        load_qwen3(ours, config)
    with pytest.raises(UserError, match="have no counterpart in Qwen3"):
        check_form(model_config(fusion="rnn"))


def test_a_foreign_tokenizer_keeps_its_ids_behind_ours(tmp_path):
    library = Library(models.BPE())
    library.pre_tokenizer, library.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(["the cat sat on the mat, 猫"] * 9, trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_foreign(tmp_path / "tokenizer.json")
    for text in ("the cat, 猫 sat", "<|end|> is text"):
        assert ours.encode(text) == [token + SHIFT for token in library.encode(text).ids]
        assert ours.decode(ours.encode(text)) == text
    assert len(ours) == library.get_vocab_size() + len(SPECIAL_TOKENS)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        Tokenizer.from_foreign(tmp_path / "bad.json")


def test_the_other_parts_stay_as_they_were_drawn(pair):
    _, _, ours = pair
    fresh = FusionTransformer(ours.config, MEDIA)
    initialise(fresh, ours.config, 0)
    assert torch.equal(fresh.embed_head.weight, ours.embed_head.weight)
    assert torch.isfinite(ours(random_batch(2))["next_token"]) and END < SHIFT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    write_shards(made / "shards", count=4)
    save_run(small_config(made / "run", made / "shards"), steps=(5, 9))
    save_run(small_config(made / "other", made / "shards"), steps=(21,))
    return made


def tensors_of(release):
    return {n: t for path in release.glob("*.safetensors") for n, t in load_file(path).items()}


def spoil(path, name, value):
    """Put one number into a checkpoint's tensor."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors[name][3] = value
    save_file(tensors, path, metadata=metadata)
    relist(path.parent)


def test_a_qwen3_folder_is_of_the_type_and_sizes_asked_for(folder, tmp_path):
    plain, _ = load_run(folder / "run")
    sizes = ["--dtype", "bfloat16", "--shard-size", "20kB", "--as", "qwen3"]
    main(["export", str(folder / "run"), "--out", str(tmp_path / "out"), *sizes])
    tensors = tensors_of(tmp_path / "out")
    assert tensors and {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    wanted = plain.model.embedding.weight.to(torch.bfloat16)
    assert torch.equal(tensors["model.embed_tokens.weight"], wanted)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    older = folder / "run" / "checkpoints" / "step-00000005"
    assert export_qwen3(folder / "run", tmp_path / "older", older)["step"] == 5


def test_a_qwen3_folder_that_cannot_be_written_is_not_there(folder, tmp_path, monkeypatch):
    run = save_run(small_config(tmp_path / "run", folder / "shards"))
    (path,) = run.glob("checkpoints/*/*.safetensors")
    spoil(path, "model.norm.weight", float("nan"))
    with pytest.raises(
        UserError, match=r"step-00000005: model\.norm\.weight holds values that are not finite"
    ):
        export_qwen3(run, tmp_path / "out")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_writer, "write_header", full)
    with pytest.raises(UserError, match=r"out: cannot be written \(.*No space left"):
        export_qwen3(folder / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
