"""`tools/compare_pillow.py` tells equal pictures, refused ones and others apart."""

import sys

import numpy as np
from conftest import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT / "tools"))

import compare_pillow


def test_every_outcome_is_counted(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(pixels[..., 0].astype(np.float32), "F").save(tmp_path / "float.tif")
    whole = (tmp_path / "turned.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    result = compare_pillow.compare(sorted(tmp_path.iterdir()))
    assert result["counts"] == {"equal": 2, "refused by both": 1, "read by Pillow alone": 1}
    ((line,),) = result["lists"].values()
    assert "float.tif: picture of floating-point" in line
