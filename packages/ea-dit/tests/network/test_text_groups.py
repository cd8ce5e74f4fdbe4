"""Short prompts folded into the cross-attention's linear layers, in float64, and cases where they are not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ea_dit.network.attention import Attention
from ea_dit.network.text_groups import Folded, OneToken, Whole, group_text

EXACT = 1e-12
WIDTH, HEADS, TEXT = 48, 3, 20  # heads of 16 channels


@pytest.fixture
def layer() -> Attention:
    torch.manual_seed(0)
    return Attention(WIDTH, HEADS, context_width=TEXT).double().eval()


def texts(*shapes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(rows, tokens, TEXT, dtype=torch.float64) for rows, tokens in shapes]


@pytest.mark.parametrize(
    ("tokens", "kind"), [(1, OneToken), (2, Folded), (8, Folded), (9, Whole), (40, Whole)]
)
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_each_form_adds_what_the_attention_gives(tokens: int, kind: type, has_bias: bool) -> None:
    torch.manual_seed(0)
    layer = Attention(WIDTH, HEADS, context_width=TEXT, bias=has_bias).double().eval()
    [text] = texts((2, tokens))
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    wanted = x + layer.attend(x, *layer.keys_values(text))
    groups = group_text(layer, [text])
    assert [type(group) for group in groups.groups] == [kind]
    assert (groups.add_to(x, layer) - wanted).abs().max() < EXACT


@torch.no_grad()
def test_rows_stay_in_their_order_and_branches_share_x(layer: Attention) -> None:
    parts = texts((2, 1), (1, 5), (3, 30))
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    found = group_text(layer, parts).add_to(x, layer)  # three branches of two videos
    rows = [row[None] for part in parts for row in part]
    for index, row in enumerate(rows):
        one = x[index % 2, None]
        wanted = one + layer.attend(one, *layer.keys_values(row))
        assert (found[index] - wanted[0]).abs().max() < EXACT


@torch.no_grad()
def test_half_precision_is_folded_in_float32(layer: Attention) -> None:
    [text] = texts((1, 6))
    x = torch.randn(1, 7, WIDTH, dtype=torch.float64)
    wanted = x + layer.attend(x, *layer.keys_values(text))
    half = layer.bfloat16()
    groups = group_text(half, [text.bfloat16()])
    assert isinstance(groups.groups[0], Folded)
    assert all(tensor.dtype == torch.bfloat16 for tensor in groups.groups[0])
    found = groups.add_to(x.bfloat16(), half)
    plain = x.bfloat16() + half.attend(x.bfloat16(), *half.keys_values(text.bfloat16()))
    error, plain_error = ((one.double() - wanted).norm() / wanted.norm() for one in (found, plain))
    assert error < 1.5 * plain_error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_folded_numbers_are_rounded_once(layer: Attention, dtype: torch.dtype) -> None:
    half = layer.to(dtype)
    [text, one] = [text.to(dtype) for text in texts((1, 6), (1, 1))]
    keys, values = (part.double() for part in half.keys_values(text))
    query, out = half.to_q.weight.double().unflatten(0, (HEADS, -1)), half.to_out[0].weight.double()
    bias = half.to_out[0].bias.double() / HEADS
    folded = group_text(half, [text]).groups[0]
    single = group_text(half, [one]).groups[0]
    assert isinstance(folded, Folded)
    assert isinstance(single, OneToken)
    exact = [
        torch.einsum("nhsd,hdw->nwhs", keys, query).flatten(2) / 4,  # the root of a head's 16 channels
        (torch.einsum("nhsd,whd->nhsw", values, out.unflatten(1, (HEADS, -1))) + bias).flatten(1, 2),
        half.keys_values(one)[1].double().transpose(1, 2).flatten(2) @ out.T + HEADS * bias,
    ]
    for found, wanted in zip([folded.keys, folded.values, single.value], exact, strict=True):
        rounding = torch.finfo(dtype).eps / 2
        assert ((found.double() - wanted).abs() <= 1.01 * rounding * wanted.abs() + 1e-6).all()


@pytest.mark.parametrize("name", ["to_q", "to_out.0"])
@torch.no_grad()
def test_weights_of_8_bits_stay_whole(layer: Attention, name: str) -> None:
    """They may have a scale elsewhere."""
    [text] = texts((1, 3))
    assert isinstance(group_text(layer, [text]).groups[0], Folded)
    linear = layer.get_submodule(name)
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert isinstance(group_text(layer, [text]).groups[0], Whole)


class Hook(SimpleNamespace):
    """A hook that does nothing, as a LoRA's at weight 0, and says so in `is_idle`."""

    def __call__(self, *_: object) -> None: ...


@torch.no_grad()
def test_layers_that_are_more_than_their_weights_stay_whole(layer: Attention) -> None:
    [text] = texts((1, 3))
    handle = layer.to_q.register_forward_hook(lambda module, args, out: out * 2)  # as an adapter does
    x = torch.randn(1, 7, WIDTH, dtype=torch.float64)
    wanted = x + layer.attend(x, *layer.keys_values(text))
    groups = group_text(layer, [text])
    assert isinstance(groups.groups[0], Whole)
    assert (groups.add_to(x, layer) - wanted).abs().max() < EXACT
    handle.remove()
    assert isinstance(group_text(layer, [text]).groups[0], Folded)
    hook = Hook(is_idle=True)
    layer.to_q.register_forward_hook(hook)
    assert isinstance(group_text(layer, [text]).groups[0], Folded)
    hook.is_idle = False
    assert isinstance(group_text(layer, [text]).groups[0], Whole)
    hook.is_idle = True
    layer.to_out[1].p = 0.1
    assert isinstance(group_text(layer, [text]).groups[0], Folded)
    assert isinstance(group_text(layer.train(), [text]).groups[0], Whole)


@pytest.mark.parametrize("name", ["to_q", "to_out.0"])
@torch.no_grad()
def test_a_hook_before_a_linear_keeps_it_whole(name: str, layer: Attention) -> None:
    """float64: an adapter may change what goes in instead of what comes out."""
    [text] = texts((1, 3))
    x = torch.randn(1, 7, WIDTH, dtype=torch.float64)
    plain = x + layer.attend(x, *layer.keys_values(text))
    layer.get_submodule(name).register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    wanted = x + layer.attend(x, *layer.keys_values(text))
    groups = group_text(layer, [text])
    assert isinstance(groups.groups[0], Whole)
    assert (groups.add_to(x, layer) - wanted).abs().max() < EXACT
    assert (wanted - plain).abs().max() > 1e-3
