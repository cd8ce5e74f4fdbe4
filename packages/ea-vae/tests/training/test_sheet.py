"""The contact sheet's layout."""

from __future__ import annotations

import numpy as np
import torch

from ea_vae.training.sheet import contact_sheet


def test_originals_above_reconstructions() -> None:
    clip = torch.stack([torch.full((3, 4, 6), v) for v in (-1.0, -0.5, 0.0, 0.5, 1.0)], dim=1)  # 3 5 4 6
    picture = torch.full((3, 1, 8, 8), 2.0)
    sheet = contact_sheet([(clip, -clip), (picture, picture)])
    assert sheet.dtype == np.uint8
    assert sheet.shape == (16, 3 * 6 + 2 + 8, 3)
    assert sheet[0, [0, 6, 12], 0].tolist() == [0, 128, 255]  # frames 0, 2 and 4
    assert sheet[4, [0, 6, 12], 0].tolist() == [255, 128, 0]  # their reconstructions
    assert (sheet[8:, :18] == 0).all()
    assert (sheet[:, 20:] == 255).all()  # clamped
