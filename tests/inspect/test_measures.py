"""The measures of one picture, clip and text, against what they promise."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmscale import prf
from mmscale.config import MediaConfig
from mmscale.data.media.image import decode_image
from mmscale.errors import SampleFault
from mmscale.inspect.charts import histogram, number_text
from mmscale.inspect.duplicates import NEAR_BITS, NEAR_COLOUR, add_groups
from mmscale.inspect.picture import SIDE, cell_colours, measure_picture, perceptual_hash
from mmscale.inspect.sound import FLOOR_DB, clipped_samples, measure_sound
from mmscale.inspect.table import COLUMNS, MAX_PATHS, build_table
from mmscale.inspect.text import MAX_DEPTH, bare, measure_text, scalars, script_of


def noise_picture(number: int) -> np.ndarray:
    """uint8 [3, SIDE, SIDE]"""
    coarse = (prf.Draws(prf.derive_key("noise", number)).uniforms(8 * 8 * 3) * 255).astype(np.uint8)
    large = Image.fromarray(coarse.reshape(8, 8, 3)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(large).transpose(2, 0, 1)


def encoded(pixels: np.ndarray, kind: str, size: int, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).resize((size, size)).save(file, kind, **options)
    return file.getvalue()


def differing(left: int, right: int) -> int:
    return (left ^ right).bit_count()


def test_the_hash_survives_scaling_encoding_and_light():
    pixels = noise_picture(1)
    first = perceptual_hash(pixels)
    for data in (encoded(pixels, "JPEG", 200, quality=40), encoded(pixels, "WEBP", 48)):
        assert differing(first, measure_picture(data)["image_phash"]) <= NEAR_BITS
    assert differing(first, perceptual_hash((pixels * 0.6 + 50).astype(np.uint8))) <= NEAR_BITS


def test_different_pictures_differ_in_half_of_the_bits():
    hashes = [perceptual_hash(noise_picture(number)) for number in range(40)]
    distances = [differing(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) > 2 * NEAR_BITS
    assert 29 < np.mean(distances) < 35


def test_the_hash_is_of_the_cosine_transform():
    """Against the definition, one frequency at a time."""
    pixels = noise_picture(2)
    grey = (pixels * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(axis=0)
    place = (2 * np.arange(SIDE) + 1) * np.pi / (2 * SIDE)
    low = [
        (grey * np.cos(v * place)[:, None] * np.cos(u * place)[None, :]).sum()
        for v in range(1, 9)
        for u in range(1, 9)
    ]
    bits = "".join(str(int(value > np.median(low))) for value in low)
    assert perceptual_hash(pixels) == int(bits, 2)


def test_pictures_alike_are_those_that_comparing_all_pairs_finds():
    """Hashes with 0 to 7 bits flipped, so that the limit is met from both sides."""
    draws = prf.Draws(3)
    rows, hashes = [], []
    for number in range(60):
        base = hashes[number // 2] if number % 2 else draws.integer(0, 1 << 62)
        flipped = sum({1 << draws.integer(0, 64) for _ in range(number % 8)}) if number % 2 else 0
        hashes.append(base ^ flipped)
        colours = bytes([100 + (30 if number % 5 == 4 else 0)] * 48)
        rows.append(
            {
                "set": "a",
                "sample": number,
                "key": str(number),
                "image_phash": hashes[-1],
                "image_contrast": 200,
            }
            | {"image_colours": colours, "image_hash": str(number)}
        )
    table = build_table(rows)
    add_groups(table)
    groups = table["image_alike"]
    parent = list(range(60))
    for i in range(60):
        for j in range(i):
            colour = abs(rows[i]["image_colours"][0] - rows[j]["image_colours"][0])
            if differing(hashes[i], hashes[j]) <= NEAR_BITS and colour <= NEAR_COLOUR:
                old, new = parent[i], parent[j]
                parent = [new if root == old else root for root in parent]
    expected = {tuple(i for i in range(60) if parent[i] == root) for root in set(parent)}
    expected = {group for group in expected if len(group) > 1}
    groups_found = {tuple(rows.index) for _, rows in table[groups.notna()].groupby("image_alike")}
    assert groups_found == expected
    assert len(expected) > 5


def test_blank_pictures_are_like_none():
    blank = encoded(np.full((3, SIDE, SIDE), 200, np.uint8), "PNG", 64)
    other = encoded(np.full((3, SIDE, SIDE), 200, np.uint8), "PNG", 50)
    rows = [
        {"set": "a", "sample": i, "key": str(i), **measure_picture(d)}
        for i, d in enumerate((blank, other))
    ]
    table = build_table(rows)
    add_groups(table)
    assert table["image_contrast"].tolist() == [0, 0]
    assert table["image_alike"].isna().all()


def test_colours_are_means_of_cells():
    pixels = decode_image(encoded(noise_picture(4), "PNG", SIDE), MediaConfig())
    cells = np.frombuffer(cell_colours(pixels), np.uint8).reshape(3, 4, 4)
    assert cells[1, 2, 3] == round(float(pixels[1, 32:48, 48:64].mean()))


def wav(samples: np.ndarray, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    # Whole numbers, because the formats round fractions differently.
    soundfile.write(
        file, np.rint(samples * 32767).astype(np.int16), 8000, format=kind, subtype="PCM_16"
    )
    return file.getvalue()


def test_a_full_scale_sine_has_its_textbook_level():
    sine = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    measures = measure_sound(wav(sine * 0.5), 8000)
    assert measures["audio_level"] == pytest.approx(-9.03, abs=0.01)
    assert measures["audio_peak"] == pytest.approx(-6.02, abs=0.01)
    assert measures["audio_clipped_samples"] == 0


def test_silence_is_at_the_floor():
    measures = measure_sound(wav(np.zeros(100)), 8000)
    assert measures["audio_level"] == measures["audio_peak"] == FLOOR_DB


def test_only_plateaus_at_full_scale_are_clipping():
    peaks = np.array([0, 1, 0, -1, 0, 1, 1, 0], np.float32)
    plateau = np.array([0.5, 1, 1, 1, 0.5, -1, -1, -1, -1, 0.2, 0.9, 0.9, 0.9], np.float32)
    assert clipped_samples(peaks) == 0
    assert clipped_samples(plateau) == 7
    assert clipped_samples(np.zeros(0, np.float32)) == 0


def test_sound_is_the_same_in_another_container_and_with_silence_around_it():
    tone = np.sin(np.arange(2000) * 0.3) * 0.4
    padded = np.concatenate([np.zeros(50), tone, np.zeros(70)])
    hashes = {
        measure_sound(data, 8000)["audio_hash"]
        for data in (wav(tone), wav(tone, "FLAC"), wav(padded))
    }
    assert len(hashes) == 1
    assert measure_sound(wav(tone * 0.5), 8000)["audio_hash"] not in hashes


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("hello world", "Latin"),
        ("你好,世界", "Han"),
        ("iPhone 15 手机发布会", "Han + Latin"),
        ("今日はいい天気です", "Han + Kana"),
        ("привет", "Cyrillic"),
        ("안녕하세요", "Hangul"),
        ("שלום", "Hebrew"),
        ("ＦＵＬＬ", "Latin"),
        ("123 !? 😀", "none"),
        ("", "none"),
        ("한국의 대표적인 기업 LG", "Hangul"),
    ],
)
def test_scripts_are_told_by_the_letters(text, script):
    assert script_of(text) == script


def test_bare_texts_are_equal_where_only_the_dress_differs():
    assert bare("Hello,  WORLD!") == bare("hello world") == bare("ＨＥＬＬＯ world。")
    assert bare("两会:代表") == bare("两会 代表")
    assert bare("a1") != bare("a2")
    assert bare("?!") != bare("...")


def test_texts_count_what_was_lost_in_conversion():
    assert measure_text("a\ufffdb\ufffd")["text_replacements"] == 2


def test_scalars_have_dotted_paths_and_lists_are_left_out():
    document = json.dumps(
        {"a": {"b": 1, "c": [1, 2], "d": None}, "e": True, "f": "x" * 1000}
    ).encode()
    values = scalars(document)
    assert values == {"a.b": "1", "e": "true", "f": "x" * 200}


@pytest.mark.parametrize("document", [b"{", b"[" * 100_000, b'"\xff"', b"9" * 5000])
def test_bad_json_is_one_samples_fault(document):
    with pytest.raises(SampleFault):
        scalars(document)


def test_deep_json_and_half_surrogates_do_no_harm():
    deep = b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1)
    assert scalars(deep) == {}
    assert scalars(b'{"a": "\\ud800"}') == {"a": "?"}


def test_json_whose_names_are_data_makes_no_endless_table():
    rows = [
        {"set": "a", "sample": i, "key": str(i), f"json.{i}": "x", "json.label": "y"}
        for i in range(500)
    ]
    table = build_table(rows)
    assert len(table.columns) == len(COLUMNS) + MAX_PATHS
    assert table["json.label"].notna().all()


@pytest.mark.parametrize(
    "values",
    [
        np.arange(1.0, 30.0),
        np.array([1.0, 2, 3, 5000]),
        np.array([0.01, 0.5, 7.25]),
        np.array([-60.5, -3.25, 0.0]),
    ],
)
def test_bars_hold_every_value_and_lie_inside_the_chart(values):
    chart = histogram("t", "u", [("a", values), ("b", np.zeros(0))])
    assert chart is not None and [row.name for row in chart.rows] == ["a"]
    bars = chart.rows[0].bars
    assert sum(int(bar.says.rpartition(": ")[2]) for bar in bars) == len(values)
    assert min(bar.x for bar in bars) >= 0 and max(bar.x + bar.width for bar in bars) <= 100.01
    assert max(bar.height for bar in bars) == 100
    assert all(0 <= place <= 100 for place, _ in chart.marks) and len(chart.marks) >= 2


def test_one_value_throughout_is_said_not_drawn():
    for value, says in ((128.0, "128"), (-26.43, "-26.4"), (0.0, "0"), (0.5, "0.5")):
        chart = histogram("t", "u", [("a", np.full(3, value)), ("b", np.full(5, value))])
        assert chart is not None and chart.same == says
    assert histogram("t", "u", [("a", np.zeros(0))]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (0.12345, "0.123"),
        (12.0, "12"),
        (-26.44, "-26.4"),
        (1234.5, "1,234"),
    ],
)
def test_numbers_have_three_digits_that_count(value, text):
    assert number_text(value) == text
