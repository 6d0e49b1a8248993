"""Pretrained towers: outputs are the library's, frozen ones stay, trained ones move, releases need
no folder.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from checkpoints import weights
from conftest import run_module
from packings import model_config
from safetensors.torch import load_file

import mmscale
from mmscale.checkpoint.towers import load_towers, resolve_towers
from mmscale.config import Config, MediaConfig
from mmscale.errors import UserError
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
MEDIA = MediaConfig(image_height=16, image_width=16, image_patch=8, frames_per_token=4)


def save_vision(kind, folder):
    torch.manual_seed(1)
    if kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES))
    elif kind == "siglip":
        model = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**SIZES, intermediate_size=48)
        )
    else:  # a whole CLIP, of which the vision half is used
        text = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        }
        vision = SIZES | {"intermediate_size": 48}
        model = transformers.CLIPModel(
            transformers.CLIPConfig(vision_config=vision, text_config=text)
        )
    model.save_pretrained(folder)
    return getattr(model, "vision_model", model).eval()


def save_whisper(folder):
    torch.manual_seed(2)
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        vocab_size=100,
        num_mel_bins=80,
        max_source_positions=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model = transformers.WhisperModel(config).eval()
    model.save_pretrained(folder)
    return model.get_encoder()


def build(config):
    resolve_towers(config)
    with torch.device("meta"):
        model = FusionTransformer(config.model, config.media)
    assert not list(model.named_buffers())
    model = model.to_empty(device="cpu").eval()
    initialise(model, config.model, 0)
    load_towers(model, config)
    return model


@pytest.mark.parametrize("side", [16, 24])
@pytest.mark.parametrize("kind", ["siglip", "dinov2", "clip"])
def test_a_vision_tower_gives_what_the_library_gives(kind, side, tmp_path):
    theirs = save_vision(kind, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    media = replace(MEDIA, image_height=side, image_width=side)
    config = Config(
        model=model_config(image_stem="pretrained", image_tower=str(tmp_path)), media=media
    )
    stem = build(config).image_stem
    pictures = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    own = {} if side == 16 else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = theirs((pictures / 255 - 0.5) / 0.25, **own).last_hidden_state[
            :, -((side // 8) ** 2) :
        ]
        tokens = stem(pictures)
        torch.testing.assert_close(
            tokens, stem.norm(stem.project(stem.tower_norm(expected))), rtol=1e-4, atol=1e-5
        )
    assert not any(parameter.requires_grad for parameter in stem.tower.parameters())


def test_what_a_folder_lacks_is_the_same_in_every_process(tmp_path):
    config = transformers.ViTConfig(**SIZES, intermediate_size=48)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    config = Config(
        model=model_config(image_stem="pretrained", image_tower=str(tmp_path)), media=MEDIA
    )
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(build(config).state_dict())
        assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(seed)), (
            "nobody's draws move"
        )
    assert any("pooler" in name for name in states[0])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_whispers_encoder_gives_what_the_library_gives_whatever_stands_beside_a_clip(tmp_path):
    theirs = save_whisper(tmp_path)
    config = Config(
        model=model_config(audio_stem="pretrained", audio_tower=str(tmp_path)),
        media=replace(MEDIA, max_audio_s=1.0),
    )
    stem = build(config).audio_stem
    frames = torch.tensor([37, 80])
    mel = torch.randn(2, 80, 80)
    window = torch.empty(2, 100, 80)
    for row, count in enumerate(frames.tolist()):
        window[row] = mel[row, :count].max() - 2.0
        window[row, :count] = mel[row, :count]
        mel[row, count:] = 99.0  # what a batch pads with changes nothing
    with torch.no_grad():
        hidden = theirs(window.transpose(1, 2)).last_hidden_state
        tokens = stem(mel, frames, [(0, 2, 80)]).unflatten(0, (2, 20))
    assert tokens.shape == (2, 20, 32)
    pooled = torch.stack([hidden[0, 2 * n : min(2 * n + 2, 19)].mean(0) for n in range(10)])
    expected = stem.norm(stem.project(stem.tower_norm(pooled)))
    torch.testing.assert_close(tokens[0, :10], expected, rtol=1e-4, atol=1e-5)


def test_folders_that_do_not_fit_are_refused_in_one_line(tmp_path):
    save_vision("siglip", tmp_path / "siglip")

    def resolve(media=MEDIA, **changes):
        resolve_towers(Config(model=model_config(**changes), media=media))

    tower = {"image_stem": "pretrained", "image_tower": str(tmp_path / "siglip")}
    with pytest.raises(UserError, match=r"set media\.image_patch=8 media\.image_height=16"):
        resolve(replace(MEDIA, image_patch=4), **tower)
    with pytest.raises(UserError, match=r"no local folder with a config\.json"):
        resolve(image_stem="pretrained", image_tower="openai/clip-vit-base-patch32")
    with pytest.raises(UserError, match="'siglip_vision_model'; the audio tower is Whisper's"):
        resolve(audio_stem="pretrained", audio_tower=str(tmp_path / "siglip"))
    (weights_file,) = (tmp_path / "siglip").glob("*.safetensors")
    weights_file.rename(tmp_path / "siglip" / "pytorch_model.bin")
    with pytest.raises(UserError, match="are pickles and are not opened"):
        resolve(**tower)


def test_a_folder_cannot_have_a_kernel_fetched(tmp_path, monkeypatch):
    from transformers.integrations import hub_kernels

    asked = []
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *name, **_: asked.append(name))
    save_vision("siglip", tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(tree | {"attn_implementation": "evil/kernel"}))
    build(
        Config(model=model_config(image_stem="pretrained", image_tower=str(tmp_path)), media=MEDIA)
    )
    assert not asked


@pytest.mark.parametrize("trained", [False, True])
def test_training_release_and_two_ranks(trained, tmp_path, small_run):
    """Frozen weights stay, trained ones move; two ranks have the losses of one; no folder is needed
    later.
    """
    save_vision("dinov2", tmp_path / "tower")
    save_whisper(tmp_path / "whisper")
    flag = str(trained).lower()
    settings = [
        *small_run, "train.steps=3", "media.image_patch=8", "media.max_audio_s=1",
        "media.frames_per_token=4",
        f"model.image_tower={tmp_path}/tower", f"model.image_tower_trained={flag}",
        "model.image_stem=pretrained",
        f"model.audio_tower={tmp_path}/whisper", f"model.audio_tower_trained={flag}",
        "model.audio_stem=pretrained",
        "train.micro_batch=4", "train.ema=0.5", "data.max_bad_fraction=0.5",
    ]  # fmt: skip
    rows = {}
    for ranks in (1, 2):
        command = [
            "mmscale",
            "train",
            "configs/train/digits.yaml",
            *settings,
            f"run.dir={tmp_path}/{ranks}",
        ]
        run_module(command, ranks=ranks)
        rows[ranks] = [
            json.loads(line)
            for line in (tmp_path / str(ranks) / "metrics.jsonl").read_text().splitlines()
        ]
    for alone, together in zip(rows[1], rows[2], strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    states = weights(tmp_path / "1")
    for stem, folder in (("image", "tower"), ("audio", "whisper")):
        original = load_file(next((tmp_path / folder).glob("*.safetensors")))
        compared = 0
        for name, tensor in states.items():
            prefix = f"model.{stem}_stem.tower."
            source = original.get(
                name.removeprefix(prefix), original.get("encoder." + name.removeprefix(prefix))
            )
            if (
                name.startswith(prefix)
                and source is not None
                and "layer" in name
                and name.endswith("weight")
            ):
                compared += 1
                assert torch.equal(source, tensor) != trained, name
        assert compared > 4
    run_module(
        ["mmscale", "export", str(tmp_path / "1"), "--out", str(tmp_path / "release"), "--ema"]
    )
    (tmp_path / "tower").rename(tmp_path / "gone")
    model = mmscale.load(tmp_path / "release")
    picture = np.zeros((16, 16), np.uint8)
    assert model.embed(image=picture).shape == (16,)
    assert model.classify(["zero", "one"], image=picture, prompt="digit")


def test_an_attack_sees_through_a_frozen_tower(tmp_path):
    """Its weights get no gradient, the picture and the clip in front of it do."""
    save_vision("siglip", tmp_path / "eye")
    save_whisper(tmp_path / "ear")
    model = build(
        Config(
            media=MediaConfig(**(vars(MEDIA) | {"max_audio_s": 1.0})),
            model=model_config(
                image_stem="pretrained",
                image_tower=str(tmp_path / "eye"),
                audio_stem="pretrained",
                audio_tower=str(tmp_path / "ear"),
            ),
        )
    )
    image = torch.full((1, 3, 16, 16), 99.0).add_(torch.arange(16.0)).requires_grad_()
    sound = torch.linspace(-1, 1, 8 * 80).reshape(1, 8, 80).requires_grad_()
    model.image_stem(image).square().sum().backward()
    model.audio_stem(sound, torch.tensor([8]), [(0, 1, 8)])[:, 0].sum().backward()
    assert image.grad is not None and image.grad.abs().min() > 0
    assert sound.grad is not None and sound.grad.abs().max() > 0
    assert all(
        p.grad is None
        for stem in (model.image_stem, model.audio_stem)
        for p in stem.tower.parameters()
    )
    # The projection behind it is trained.
    assert model.image_stem(image.detach()).grad_fn is not None
