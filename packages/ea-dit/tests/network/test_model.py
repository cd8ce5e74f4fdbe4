from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ea_dit import Transformer3DModel, initialize_weights

GRID: dict[str, Any] = {
    "motion_module_type": "VanillaGrid",
    "motion_module_kwargs": {
        "num_attention_heads": 4,
        "temporal_position_encoding_max_len": 16,
        "block_size": 2,
    },
}


@pytest.mark.parametrize("depth", [1, 2, 5, 6])
@pytest.mark.parametrize("frames", [1, 4])
def test_output_shape(make_model, make_inputs, depth: int, frames: int) -> None:
    model = make_model(num_layers=depth)
    inputs = make_inputs(frames=frames)
    with torch.no_grad():
        sample = model(**inputs).sample
        (as_tuple,) = model(**inputs, return_dict=False)
    assert sample.shape == (2, 8, frames, 4, 6)
    assert torch.equal(sample, as_tuple)
    assert sample.isfinite().all()


@pytest.mark.parametrize("heads", [12, 16])
def test_small_published_widths(make_inputs, heads: int) -> None:
    model = Transformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=8,
        num_layers=3,
        cross_attention_dim=8 * heads,
        caption_channels=24,
        sample_size=8,
    )
    assert model(**make_inputs()).sample.shape == (2, 8, 3, 4, 6)


def test_text_without_projection(make_model, make_inputs) -> None:
    model = make_model(caption_channels=None, cross_attention_dim=24)
    assert not any(name.startswith("caption_projection") for name in model.state_dict())
    assert model(**make_inputs()).sample.shape == (2, 8, 3, 4, 6)


@pytest.mark.parametrize("options", [{}, GRID])
def test_fresh_model_treats_frames_independently(make_model, make_inputs, options: dict[str, Any]) -> None:
    model = make_model(randomized=False, **options)
    inputs = make_inputs(width=4)
    with torch.no_grad():
        video = model(**inputs).sample
        for frame in range(3):
            picture = model(
                **{**inputs, "hidden_states": inputs["hidden_states"][:, :, frame : frame + 1]}
            ).sample
            torch.testing.assert_close(video[:, :, frame : frame + 1], picture, atol=1e-5, rtol=1e-5)


def test_fresh_motion_modules_and_skips_are_the_identity(make_model, make_inputs) -> None:
    inputs = make_inputs()
    model = make_model(randomized=False, num_layers=6)
    with torch.no_grad():
        whole = model(**inputs).sample
        model.set_motion_modules(enabled=False)
        torch.testing.assert_close(model(**inputs).sample, whole)
        plain = make_model(randomized=False, num_layers=6, enable_uvit=False)
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith("long_connect_fc")}
        plain.load_state_dict(weights)
        torch.testing.assert_close(plain(**inputs).sample, whole)


@pytest.mark.parametrize("options", [{}, GRID])
def test_trained_motion_modules_mix_frames(make_model, make_inputs, options: dict[str, Any]) -> None:
    model = make_model(**options)
    inputs = make_inputs(width=4)
    changed = {**inputs, "hidden_states": inputs["hidden_states"].clone()}
    changed["hidden_states"][:, :, 2] += 1
    with torch.no_grad():
        difference = (model(**inputs).sample - model(**changed).sample).abs()
    assert difference[:, :, 0].max() > 1e-5


def test_grid_blocks_are_neighbours(make_model) -> None:
    # Changing the top left token affects its 2 x 2 block in every frame, and nothing else.
    motion = make_model(**GRID).blocks[0].attn_temporal
    motion.temporal_transformer.norm = torch.nn.Identity()  # its statistics span the whole frame
    tokens = torch.randn(1, 3 * 4 * 6, 32)
    changed = tokens.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        difference = motion(tokens, 3, 4, 6) - motion(changed, 3, 4, 6)
    reached = difference.abs().sum(-1).view(3, 4, 6) > 1e-6
    expected = torch.zeros(3, 4, 6, dtype=torch.bool)
    expected[:, :2, :2] = True
    assert torch.equal(reached, expected)


def test_one_frame_shortcut_is_exact(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs(frames=1)
    with torch.no_grad():
        shortcut = model(**inputs).sample
    torch.testing.assert_close(shortcut, model(**inputs).sample.detach())


def test_skips_are_last_out_first_in(make_model, make_inputs) -> None:
    model, inputs = make_model(num_layers=6), make_inputs()
    seen: dict[str, torch.Tensor] = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _m, _a, out, i=index: seen.__setitem__(f"block {i}", out))
    for index, linear in enumerate(model.long_connect_fc):
        linear.register_forward_hook(lambda _m, args, _o, i=index: seen.__setitem__(f"skip {i}", args[0]))
    with torch.no_grad():
        model(**inputs)
    assert seen["skip 0"] is seen["block 1"]
    assert seen["skip 1"] is seen["block 0"]
    assert "skip 2" not in seen


def test_masked_tokens_do_not_matter(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs()
    changed = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"].clone()}
    changed["encoder_hidden_states"][:, 3:] += 10  # the last two tokens are masked
    cut = {
        **inputs,
        "encoder_hidden_states": inputs["encoder_hidden_states"][:, :3],
        "encoder_attention_mask": None,
    }
    with torch.no_grad():
        sample = model(**inputs).sample
        torch.testing.assert_close(model(**changed).sample, sample)
        torch.testing.assert_close(model(**cut).sample, sample)  # cutting them off equals masking them
        changed["encoder_hidden_states"][:, 0] += 10
        assert (model(**changed).sample - sample).abs().max() > 1e-4


def test_mask_may_be_bool_or_a_bias(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs()
    mask = inputs.pop("encoder_attention_mask")
    with torch.no_grad():
        sample = model(**inputs, encoder_attention_mask=mask).sample
        torch.testing.assert_close(model(**inputs, encoder_attention_mask=mask.bool()).sample, sample)
        bias = ((1 - mask.float()) * -10000.0)[:, None]
        torch.testing.assert_close(model(**inputs, encoder_attention_mask=bias).sample, sample)


def test_one_timestep_for_all(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs()
    with torch.no_grad():
        expected = model(**{**inputs, "timestep": torch.tensor([500, 500])}).sample
        for timestep in (500, 500.0, torch.tensor(500), torch.tensor([500])):
            assert torch.equal(model(**{**inputs, "timestep": timestep}).sample, expected)


def test_samples_of_a_batch_are_independent(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs()
    with torch.no_grad():
        together = model(**inputs).sample
        for row in range(2):
            alone = model(**{name: value[row : row + 1] for name, value in inputs.items()}).sample
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_size_conditions_matter(make_model, make_inputs) -> None:
    model = make_model(num_attention_heads=12, cross_attention_dim=96, sample_size=128)
    inputs = make_inputs()
    sizes = {"resolution": torch.tensor([[32.0, 48.0]] * 2), "aspect_ratio": torch.tensor([[2 / 3]] * 2)}
    other = {**sizes, "resolution": torch.tensor([[512.0, 512.0]] * 2)}
    with torch.no_grad():
        sample = model(**inputs, added_cond_kwargs=sizes).sample
        assert (model(**inputs, added_cond_kwargs=other).sample - sample).abs().max() > 1e-5


@pytest.mark.parametrize("frames", [1, 3])
def test_gradient_checkpointing_changes_no_gradient(make_model, make_inputs, frames: int) -> None:
    plain = make_model(num_layers=6).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.enable_gradient_checkpointing()
    inputs = make_inputs(frames=frames)
    for model in (plain, checkpointed):
        model(**inputs).sample.square().mean().backward()
    for (name, ours), theirs in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        assert torch.equal(ours.grad, theirs.grad), name


def test_save_and_load(make_model, make_inputs, tmp_path) -> None:
    model, inputs = make_model(**GRID), make_inputs(width=4)
    model.save_pretrained(tmp_path)
    loaded = Transformer3DModel.from_pretrained(tmp_path).eval()
    assert loaded.cfg == model.cfg
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    with torch.no_grad():
        assert torch.equal(model(**inputs).sample, loaded(**inputs).sample)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_model, make_inputs, dtype: torch.dtype) -> None:
    model, inputs = make_model(), make_inputs()
    with torch.no_grad():
        expected = model(**inputs).sample
        for name in ("hidden_states", "encoder_hidden_states"):
            inputs[name] = inputs[name].to(dtype)
        sample = model.to(dtype)(**inputs).sample
    assert sample.dtype == dtype
    assert (sample.float() - expected).norm() / expected.norm() < 0.05


def test_autocast(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs()
    expected = model(**inputs).sample
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sample = model(**inputs).sample
    assert (sample.float() - expected).norm() / expected.norm() < 0.05
    sample.float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("frames", [1, 3])
def test_export_gives_one_graph(make_model, make_inputs, frames: int) -> None:
    model, inputs = make_model(num_layers=3), make_inputs(frames=frames)
    with torch.no_grad():
        expected = model(**inputs).sample
        program = torch.export.export(model, (), {**inputs, "return_dict": False}, strict=False)
        (sample,) = program.module()(**inputs, return_dict=False)
    torch.testing.assert_close(sample, expected)
    assert any("scaled_dot_product_attention" in str(node.target) for node in program.graph.nodes)


def test_initialize_weights_starts_at_zero_output(make_model, make_inputs) -> None:
    model, inputs = make_model(), make_inputs()
    initialize_weights(model)
    with torch.no_grad():
        assert not model(**inputs).sample.any()
    for block in model.blocks:
        assert not block.attn_temporal.temporal_transformer.proj_out.weight.any()
    assert all(not p.any() for p in model.long_connect_fc.parameters())
    assert model.proj_out.weight.requires_grad


class TestErrors:
    """One line each, with the argument, what was expected and what came."""

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("hidden_states", torch.zeros(2, 4, 4, 6), r"must have 5 axes .* got shape \(2, 4, 4, 6\)"),
            ("hidden_states", torch.zeros(2, 3, 3, 4, 6), "must have 4 channels, got 3"),
            ("hidden_states", torch.zeros(2, 4, 3, 5, 6), "multiples of 2, got 5x6; use 4x6"),
            ("hidden_states", torch.zeros(2, 4, 17, 4, 6), "at most 16 latent frames, got 17"),
            ("encoder_hidden_states", torch.zeros(2, 5, 32), "must have 24 channels, got 32"),
            ("encoder_hidden_states", torch.zeros(1, 5, 24), r"must have shape \(2, tokens, 24\)"),
            ("encoder_hidden_states", None, "must be given"),
            ("encoder_attention_mask", torch.ones(2, 7), r"must have shape \(2, 5\), got \(2, 7\)"),
            ("timestep", torch.zeros(3), r"one number or of shape \(2,\)"),
        ],
    )
    def test_bad_input(self, make_model, make_inputs, name: str, value: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words) as error:
            make_model()(**{**make_inputs(), name: value})
        assert f"`{name}`" in str(error.value)
        assert "\n" not in str(error.value)

    def test_grid_needs_whole_blocks(self, make_model, make_inputs) -> None:
        with pytest.raises(ValueError, match="multiples of 4, got 4x6; use 4x4"):
            make_model(**GRID)(**make_inputs())

    @pytest.mark.parametrize("conditions", [None, {}, {"resolution": torch.ones(2, 2)}, {"resolution": None}])
    def test_missing_size_conditions(self, make_model, make_inputs, conditions: Any) -> None:
        model = make_model(num_attention_heads=12, cross_attention_dim=96, sample_size=128)
        with pytest.raises(ValueError, match=r"`added_cond_kwargs` must hold '(resolution|aspect_ratio)'"):
            model(**make_inputs(), added_cond_kwargs=conditions)

    def test_size_conditions_of_another_batch(self, make_model, make_inputs) -> None:
        model = make_model(num_attention_heads=12, cross_attention_dim=96, sample_size=128)
        with pytest.raises(ValueError, match=r"must have shape \(2, 2\), got \(3, 2\)"):
            model(**make_inputs(), added_cond_kwargs={"resolution": torch.ones(3, 2)})
