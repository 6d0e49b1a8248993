"""A tokenizer.json is read if its parts are those of a byte-level BPE; a stranger's can do no harm
when it is used.
"""

import json
import os
import threading

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from mmscale.checkpoint.run_folder import check_vocabulary
from mmscale.config import Config
from mmscale.data.special_tokens import SPECIAL_TOKENS
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

OWN = {token: number for number, token in enumerate(SPECIAL_TOKENS)}


def model(**changes):
    return lambda tree: tree["model"].update(changes)


def part(name, **value):
    return lambda tree: tree.update({name: value})


HOSTILE = {
    "fixed padding": part("padding", strategy={"Fixed": 10**9}, direction="Right",
    pad_to_multiple_of=None,
                          pad_id=10**8, pad_type_id=0, pad_token="<|pad|>"),
    "truncation": part("truncation", direction="Right", max_length=1, strategy="LongestFirst",
    stride=5),
    "a template": part("post_processor", type="TemplateProcessing", pair=[],
                       single=[{"SpecialToken": {"id": "q", "type_id": 0}}],
                       special_tokens={"q": {"id": "q", "ids": [10**8], "tokens": ["q"]}}),
    "replace nothing": part("normalizer", type="Replace", pattern={"String": ""}, content="x" *
    10_000),
    "text that grows": part("normalizer", type="Sequence", normalizers=[
        {"type": "Replace", "pattern": {"Regex": "."}, "content": "e" * 1000}] * 3),
    "precompiled": part("normalizer", type="Precompiled", precompiled_charsmap="AAAA"),
    "words": model(type="WordLevel", vocab=OWN, unk_token="[UNK]"),
    "pieces": model(type="WordPiece", vocab=OWN, unk_token="zz", continuing_subword_prefix="#",
                    max_input_chars_per_word=0),
    "unknown": model(unk_token="zz"),
    "dropout": model(dropout=1.0),
    "prefix": model(continuing_subword_prefix="é"),
    "decoder": part("decoder", type="CTC", pad_token="", word_delimiter_token="", cleanup=True),
    "no decoder": lambda tree: tree.update(decoder=None),
    "pattern": part("pre_tokenizer", type="Split", pattern={"Regex": "(a+)+$"}, behavior="Isolated",
    invert=False),
    "pattern before bytes": part("pre_tokenizer", type="Sequence", pretokenizers=[
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex":
        False}]),
    "no pre-tokenizer": lambda tree: tree.update(pre_tokenizer=None),
    "types": part("pre_tokenizer", type=["ByteLevel"]),
    "no model": lambda tree: tree.pop("model"),
    "vocabulary": model(vocab=5),
    "half a character": model(vocab=OWN | {"\ud800": 5}),
    "id beyond the model": lambda tree: tree["model"]["vocab"].update({"zzz": 10**8}),
    "id beyond 32 bits": lambda tree: tree["model"]["vocab"].update({"zzz": 1 << 32}),
}  # fmt: skip


@pytest.mark.parametrize("fault", HOSTILE)
def test_what_a_stranger_wrote_is_refused_in_one_line_or_harmless(tmp_path, fault):
    path = tmp_path / "tokenizer.json"
    Tokenizer.train(["zero one two"] * 3, 300).save(path)
    expected = Tokenizer.load(path).encode("zero aaaa one")
    tree = json.loads(path.read_text())
    HOSTILE[fault](tree)
    path.write_text(json.dumps(tree))
    try:
        tokenizer = Tokenizer.load(path)
        config = Config()
        config.model.vocab_size = 320
        check_vocabulary(config, tokenizer, path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500 and "tokenizer.json" in str(error)
        assert fault not in ("fixed padding", "truncation", "a template")
        return
    assert fault in ("fixed padding", "truncation", "a template")  # which are left out
    assert tokenizer.encode("zero aaaa one") == expected
    assert tokenizer.lengths(["zero aaaa one"]) == [len(expected)]


@pytest.mark.parametrize("read", [Tokenizer.load, Tokenizer.from_foreign])
def test_only_plain_files_of_a_sensible_size_are_read(tmp_path, read):
    pipe, large, deep = (tmp_path / name for name in ("pipe", "large", "deep"))
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(1 << 30)
    deep.write_text("[" * 200_000)
    for path, message in (
        (pipe, "no plain file"),
        (large, "larger than"),
        (deep, "not a tokenizer"),
    ):
        refusals = []

        def attempt(path=path, refusals=refusals):
            with pytest.raises(UserError) as caught:
                read(path)
            refusals.append(str(caught.value))

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(60)
        assert refusals and message in refusals[0], f"{path}: {refusals or 'hangs'}"


def test_the_parts_of_qwen3s_tokenizer_are_taken(tmp_path):
    """Unicode form, split by its pattern, bytes; and what was taken over opens again as this
    project's own.
    """
    library = tokenizers.Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(["the cat sat on the mat, 猫 123"] * 9, trainer)
    library.save(str(tmp_path / "theirs.json"))
    ours = Tokenizer.from_foreign(tmp_path / "theirs.json")
    ours.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    text = "the cat's mat, 猫 42"
    assert again.digest == ours.digest and len(again) == len(ours) == library.get_vocab_size() + 5
    assert (
        again.encode(text) == ours.encode(text) == [token + 5 for token in library.encode(text).ids]
    )
    assert again.decode(again.encode(text)) == text
