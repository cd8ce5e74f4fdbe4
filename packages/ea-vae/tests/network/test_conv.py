from __future__ import annotations

import pytest
import torch

from ea_vae.network.conv import CausalConv3d


@pytest.fixture
def conv() -> CausalConv3d:
    torch.manual_seed(0)
    return CausalConv3d(2, 3)


def test_causal_output_never_sees_later_frames(conv, noise):
    x = noise(1, 2, 6, 4, 4)
    changed = x.clone()
    changed[:, :, 4:] += 1
    before, after = conv(x), conv(changed)
    assert before.shape == (1, 3, 6, 4, 4)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.allclose(before[:, :, 4], after[:, :, 4])


def test_causal_padding_repeats_frame_0(conv, noise):
    picture = noise(1, 2, 1, 4, 4)
    still = picture.expand(1, 2, 5, 4, 4)
    assert torch.allclose(conv(still), conv(picture).expand(1, 3, 5, 4, 4), atol=1e-6)
    pad = torch.nn.functional.pad(still, (0, 0, 0, 0, 2, 0), mode="replicate")
    assert torch.equal(conv(still), torch.nn.Conv3d.forward(conv, pad))


def test_slice_padding_is_zero_on_both_sides(conv, noise):
    x = noise(1, 2, 4, 4, 4)
    wanted = torch.nn.functional.conv3d(x, conv.weight, conv.bias, padding=1)
    for mode in ("slice", "single"):
        assert torch.allclose(conv(x, mode), wanted, atol=1e-6)


@pytest.mark.parametrize(("num_frames", "wanted"), [(1, 1), (2, 1), (3, 2), (8, 4), (9, 5)])
@pytest.mark.parametrize("mode", ["causal", "slice"])
def test_stride_rounds_up(noise, num_frames, wanted, mode):
    conv = CausalConv3d(2, 2, stride=(2, 1, 1))
    assert conv(noise(1, 2, num_frames, 4, 4), mode).shape == (1, 2, wanted, 4, 4)


def test_keys_are_those_of_a_plain_convolution(conv):
    assert set(conv.state_dict()) == {"weight", "bias"}
