"""VideoPipeline: what it makes, that it repeats to the bit, and golden decoding."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.generation.out_of_memory import OutOfMemoryError
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.models.layout import GenerationDefaults
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae
from ea_runtime.text import clean_caption

SMALL = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 3, "guidance_scale": 4.0}
SAMPLERS = ["euler", "euler-a", "dpm++", "ddim", "unipc"]


@pytest.fixture
def pipe() -> VideoPipeline:
    return VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder(num_tokens=40))


def test_a_video(pipe):
    result = pipe("a red circle", seed=1, **SMALL)
    assert result.frames.shape == (1, 9, 32, 48, 3)
    assert result.frames.dtype == np.uint8
    assert result.latents.shape == (1, 4, 3, 4, 6)
    assert result.latents.dtype == torch.float32
    assert not result.latents.is_inference()
    assert set(result.timings) == {"text", "denoising", "decoding"}
    assert pipe("a blue circle", seed=1, **SMALL).frames.tobytes() != result.frames.tobytes()
    assert pipe("a red circle", seed=2, **SMALL).frames.tobytes() != result.frames.tobytes()


def test_a_picture_is_one_frame(pipe):
    result = pipe("a red circle", seed=1, **SMALL | {"num_frames": 1})
    assert result.frames.shape == (1, 1, 32, 48, 3)
    assert result.latents.shape[2] == 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_gives_the_same_bits_and_settings_repeat_a_run(pipe, sampler):
    first = pipe("a red circle", "a square", sampler=sampler, seed=5, **SMALL)
    torch.manual_seed(99)  # the global state plays no part
    before = torch.get_rng_state()
    again = pipe(**first.settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.latents, again.latents)
    assert np.array_equal(first.frames, again.frames)


def test_a_seed_left_out_is_told(pipe):
    first, second = pipe("x", **SMALL), pipe("x", **SMALL)
    assert first.settings["seed"] != second.settings["seed"]
    assert np.array_equal(pipe(**first.settings).frames, first.frames)


@pytest.mark.parametrize("sampler", ["euler-a", "dpm++"])
def test_a_generator_equals_its_seed_and_settings_hold_its_state(pipe, sampler):
    seeded = pipe("x", seed=7, sampler=sampler, **SMALL)
    generator = torch.Generator().manual_seed(7)
    given = pipe("x", generator=generator, sampler=sampler, **SMALL)
    assert np.array_equal(seeded.frames, given.frames)
    later = pipe("x", generator=generator, sampler=sampler, **SMALL)  # the generator has moved on
    assert not np.array_equal(later.frames, given.frames)
    assert np.array_equal(pipe(**given.settings).frames, given.frames)


@pytest.mark.parametrize("sampler", ["euler-a", "dpm++"])
def test_each_video_of_a_batch_equals_a_run_of_its_own(pipe, sampler):
    prompts = ["a red circle", "", "a blue square that moves"]
    batch = pipe(prompts, seed=10, sampler=sampler, **SMALL)
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, seed=10 + i, sampler=sampler, **SMALL)
        assert torch.equal(batch.latents[i], alone.latents[0])
        assert np.array_equal(batch.frames[i], alone.frames[0])
    together = pipe(prompts, seed=10, sampler=sampler, batch_size=2, **SMALL)
    assert torch.allclose(together.latents, batch.latents, atol=1e-5, rtol=1e-4)
    own = pipe(prompts, seed=[3, 1, 2], negative_prompt=["a", "b", "c"], sampler=sampler, **SMALL)
    assert torch.equal(own.latents[1], pipe("", "b", seed=1, sampler=sampler, **SMALL).latents[0])


def test_guidance_of_1_and_less_asks_for_no_negative_text(pipe):
    rows = []
    pipe.denoiser.register_forward_pre_hook(lambda m, args: rows.append(args[0].shape[0]))
    off = [pipe("x", "y", seed=1, **SMALL | {"guidance_scale": g}).latents for g in (1.0, 0.0)]
    assert set(rows) == {1}
    assert torch.equal(*off)
    on = pipe("x", "y", seed=1, **SMALL).latents
    assert set(rows) == {1, 2}
    assert not torch.equal(on, off[0])
    assert not torch.equal(on, pipe("x", "z", seed=1, **SMALL).latents)


def test_the_negative_text_comes_first_and_the_variance_is_left_out(pipe):
    seen = []

    def look(module, args, kwargs):
        seen.append(kwargs["encoder_hidden_states"])

    pipe.denoiser.register_forward_pre_hook(look, with_kwargs=True)
    result = pipe("good", "bad", seed=1, **SMALL)
    encoder = pipe.text
    assert torch.equal(seen[0][0], encoder.encode(["bad"]).embeds[0])
    assert torch.equal(seen[0][1], encoder.encode(["good"]).embeds[0])
    assert result.latents.abs().max() < 50  # the second half of the channels is 1000


def test_a_denoiser_without_variance(pipe):
    class Plain(FakeDenoiser):
        def forward(self, *args, **kwargs):
            return SimpleNamespace(sample=super().forward(*args, **kwargs).sample.chunk(2, dim=1)[0])

    plain = VideoPipeline(pipe.vae, Plain(out_channels=4), pipe.text)
    assert torch.equal(plain("x", seed=1, **SMALL).latents, pipe("x", seed=1, **SMALL).latents)


@pytest.mark.parametrize("sample_size", [64, 128])
def test_only_the_1024_pixel_model_is_told_sizes(sample_size):
    seen = []

    class Asked(FakeDenoiser):
        def forward(self, hidden_states, timestep, added_cond_kwargs, **kwargs):
            seen.append(added_cond_kwargs)
            return super().forward(hidden_states, timestep, **kwargs)

    VideoPipeline(None, Asked(sample_size=sample_size), FakeTextEncoder())(
        "x", output="latents", seed=1, **SMALL
    )
    if sample_size == 64:
        assert seen[0] == {"resolution": None, "aspect_ratio": None}
    else:
        assert seen[0]["resolution"].tolist() == [[32, 48]] * 2
        assert seen[0]["aspect_ratio"][:, 0].tolist() == pytest.approx([32 / 48] * 2)


def test_latents_out_and_streamed_decoding_equal_frames(pipe):
    whole = pipe("x", seed=1, **SMALL | {"num_frames": 27})
    parts = pipe("x", seed=1, output="latents", **SMALL | {"num_frames": 27})
    assert parts.frames is None
    pipe.vae.num_chunks = 0
    stream = pipe.iter_frames(parts.latents, seed=parts.decode_seeds[0])
    next(stream)
    assert pipe.vae.num_chunks == 1  # the rest is not decoded yet
    assert not torch.is_inference_mode_enabled()
    stream = pipe.iter_frames(parts.latents[0], seed=parts.decode_seeds[0])
    assert np.array_equal(np.stack(list(stream)), whole.frames[0])


def test_latents_and_embeddings_given(pipe):
    encoder = pipe.text
    noise = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    said = encoder.encode(["x", "y"])
    texts = {
        "prompt_embeds": said.embeds[:1],
        "prompt_attention_mask": said.mask[:1],
        "negative_prompt_embeds": said.embeds[1:],
        "negative_prompt_attention_mask": said.mask[1:],
    }
    few = {"num_inference_steps": 3, "guidance_scale": 4.0}
    bare = VideoPipeline(pipe.vae, pipe.denoiser, torch.nn.Linear(1, 1))  # a network that is no text encoder
    result = bare(**texts, latents=noise, **few)
    assert result.frames.shape == (1, 9, 32, 48, 3)
    assert torch.equal(pipe("x", "y", seed=3, **SMALL).latents, result.latents)
    assert torch.equal(bare(**result.settings).latents, result.latents)


def test_smoothing_is_on_and_can_be_turned_off(pipe):
    smooth, plain = (pipe("x", seed=1, smooth=s, **SMALL) for s in (True, False))
    assert np.array_equal(pipe("x", seed=1, **SMALL).frames, smooth.frames)
    assert torch.equal(smooth.latents, plain.latents)
    assert not np.array_equal(smooth.frames, plain.frames)


def test_progress_counts_every_phase(pipe):
    calls = []
    pipe(["x", "y"], "z", seed=1, on_step=lambda *call: calls.append(call), **SMALL)
    for phase, total in (("text", 3), ("denoising", 6), ("decoding", 18)):
        done = [d for p, d, t in calls if p == phase]
        assert {t for p, _, t in calls if p == phase} == {total}
        assert done[0] == 0
        assert done[-1] == total
        assert done == sorted(done)


def test_a_run_can_be_stopped_at_a_step_and_leaves_nothing(pipe):
    class Stop(Exception):
        pass

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "denoising" and done == 2:
            raise Stop

    good = pipe("x", seed=1, **SMALL)
    with pytest.raises(Stop):
        pipe("x", seed=1, on_step=stop, **SMALL)
    assert np.array_equal(pipe("x", seed=1, **SMALL).frames, good.frames)


def test_cut_and_empty_prompts_are_said(pipe, caplog):
    with caplog.at_level(logging.WARNING, logger="ea"):
        result = pipe(["", "x" * 60], seed=1, **SMALL)
    assert any("empty" in note for note in result.notes)
    assert any("x" * 20 in note for note in result.notes)
    assert [r.getMessage() for r in caplog.records if r.name == "ea"] == result.notes


class CleaningEncoder(FakeTextEncoder):
    """Cleans captions as T5's does."""

    def encode(self, prompts):
        encoded = super().encode(prompts)
        encoded.cleaned = [clean_caption(prompt) for prompt in prompts]
        return encoded


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"prompt": "gr4ph1c red circle"}, "gr4ph1c"),
        ({"prompt": "一只红色的圆形向右移动"}, "一只红色的圆形向右移动"),
        ({"negative_prompt": "blurry", "guidance_scale": 1.0}, "negative prompt is not used at guidance 1"),
        ({"height": 96, "width": 96}, "96x96 is far from 48x32"),
        ({"height": 16, "width": 16}, "16x16 is far from 48x32"),
        ({"negative_prompt": "blurry"}, None),
        ({"guidance_scale": 1.0}, None),
        ({"height": 48, "width": 64}, None),
    ],
)
def test_what_is_dropped_or_far_is_said(changes, note):
    defaults = GenerationDefaults(height=32, width=48, num_frames=9, steps=2)
    pipe = VideoPipeline(FakeVae(), FakeDenoiser(), CleaningEncoder(num_tokens=40), defaults=defaults)
    result = pipe(**{"prompt": "a red circle", "seed": 1} | changes)
    assert len(result.notes) == (note is not None)
    assert all(note in one for one in result.notes)


def test_seeds_are_32_bits():
    """torch's generator drops the rest without a word: 43 and 43 + 2**32 would be one picture."""
    pipe = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder())
    for seed in (43 + (1 << 32), [1 << 32], (1 << 63) - 2):
        with pytest.raises(UserError, match=r"`seed` must be at most 4,294,967,295, got .* draws the same"):
            pipe(["x"], seed=seed, **SMALL)
    with pytest.raises(UserError, match=r"at most 4,294,967,294 for 2 videos.* got 4294967295"):
        pipe(["x", "y"], seed=(1 << 32) - 1, **SMALL)
    last = pipe("x", seed=(1 << 32) - 1, output="latents", **SMALL).latents
    assert not torch.equal(last, pipe("x", seed=(1 << 31) - 1, output="latents", **SMALL).latents)


def test_defaults_of_the_model_fill_what_is_left_out():
    defaults = GenerationDefaults(height=32, width=32, num_frames=9, steps=2, guidance=1.0, sampler="euler")
    result = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder(), defaults=defaults)("x", seed=1)
    assert result.frames.shape == (1, 9, 32, 32, 3)
    assert result.settings["sampler"] == "euler"
    assert VideoPipeline(None, FakeDenoiser()).defaults.sampler == "dpm++"


def test_without_a_vae_latents_work_and_frames_name_the_package(pipe):
    bare = VideoPipeline(None, pipe.denoiser, pipe.text)
    assert torch.equal(
        bare("x", seed=1, output="latents", **SMALL).latents, pipe("x", seed=1, **SMALL).latents
    )
    with pytest.raises(MissingPackageError, match="ea-vae"):
        bare("x", seed=1, **SMALL)


def test_weights_are_left_alone(pipe):
    before = {k: v.clone() for k, v in pipe.denoiser.state_dict().items()}
    pipe("x", seed=1, **SMALL)
    assert all(torch.equal(v, before[k]) for k, v in pipe.denoiser.state_dict().items())
    assert all(p.requires_grad for p in pipe.denoiser.parameters())


def test_half_precision_runs_the_network_and_keeps_latents_in_float32(pipe):
    pipe.to(dtype="bf16")
    assert pipe.dtype == torch.bfloat16
    assert pipe("x", seed=1, **SMALL).latents.dtype == torch.float32
    pipe.to(dtype="float16")
    assert next(pipe.vae.parameters()).dtype == torch.float32


# -- faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 2])
def test_latents_that_are_not_finite_are_one_clear_error(pipe, where):
    calls = []

    def spoil(module, args, output):
        calls.append(1)
        if len(calls) == where + 1:
            output.sample[0, 0, 0, 0, 0] = float("nan")

    handle = pipe.denoiser.register_forward_hook(spoil)
    with pytest.raises(UserError, match=f"pass {where + 1} of 3") as error:
        pipe("x", seed=1, **SMALL)
    assert "\n" not in str(error.value)
    handle.remove()
    assert pipe("x", seed=1, **SMALL).frames.any()


def test_frames_that_are_not_finite_are_one_clear_error(pipe):
    pipe.vae.gain.data.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        pipe("x", seed=1, **SMALL)


def run_out(times: int, counter: list[int], start: int = 0):
    """A hook or wrapper that runs out of memory at calls start .. start + times."""

    def maybe(*_args, **_kwargs) -> None:
        counter[0] += 1
        if start < counter[0] <= start + times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    return maybe


@pytest.mark.parametrize("step", [0, 1, 2])
def test_out_of_memory_while_denoising_goes_on_row_by_row(pipe, step):
    good = pipe("x", seed=1, **SMALL)
    handle = pipe.denoiser.register_forward_pre_hook(run_out(1, [0], start=step))
    result = pipe("x", seed=1, **SMALL)
    assert torch.allclose(result.latents, good.latents, atol=1e-5, rtol=1e-4)
    handle.remove()
    assert np.array_equal(pipe("x", seed=1, **SMALL).frames, good.frames)


def test_out_of_memory_again_names_a_smaller_setting(pipe):
    good = pipe("x", seed=1, **SMALL | {"num_frames": 18})
    handle = pipe.denoiser.register_forward_pre_hook(run_out(99, [0]))
    with pytest.raises(OutOfMemoryError, match="try num_frames=9 or height=16, width=32"):
        pipe("x", seed=1, **SMALL | {"num_frames": 18})
    handle.remove()
    assert np.array_equal(pipe("x", seed=1, **SMALL | {"num_frames": 18}).frames, good.frames)


def test_out_of_memory_in_the_text_encoder(pipe):
    encode, counter = pipe.text.encode, [0]
    fail = run_out(1, counter)
    pipe.text.encode = lambda prompts: (fail(), encode(prompts))[1]
    with pytest.raises(OutOfMemoryError):
        pipe("x", seed=1, **SMALL)
    assert pipe("x", seed=1, **SMALL).frames.any()


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_out_of_memory_while_decoding_goes_on_in_tiles(pipe, chunk):
    size = SMALL | {"num_frames": 27}
    good = pipe("x", seed=1, **size)
    decode, counter, tiled = pipe.vae.iter_decode, [0], []

    def failing(latents, smooth=True, generator=None, times=1):
        maybe = run_out(times, counter, start=chunk)
        for frames in decode(latents, smooth, generator):
            maybe()
            tiled.append(pipe.vae.use_tiling)
            yield frames

    pipe.vae.iter_decode = failing
    result = pipe("x", seed=1, **size)
    assert tiled[-1]
    assert not pipe.vae.use_tiling
    assert np.array_equal(result.frames, good.frames)  # the fake's tiles are exact

    counter[0] = 0
    pipe.vae.iter_decode = lambda latents, smooth=True, generator=None: failing(
        latents, smooth, generator, 99
    )
    with pytest.raises(OutOfMemoryError, match="decoding"):
        pipe("x", seed=1, **size)
    assert not pipe.vae.use_tiling
    pipe.vae.iter_decode = decode
    assert np.array_equal(pipe("x", seed=1, **size).frames, good.frames)


# -- golden ------------------------------------------------------------------------------------------


def reference(name: str) -> Path:
    root = next((p for p in Path(__file__).parents if (p / "packages").is_dir()), None)
    folder = None if root is None else root.parent / "shared" / "reference" / name
    if folder is None or not folder.is_dir():
        pytest.skip(f"the golden data (shared/reference/{name}) is not here")
    return folder


@pytest.mark.parametrize("kind", ["magvit", "slice"])
def test_golden_decoding(kind):
    ea_vae = pytest.importorskip("ea_vae")
    from safetensors.torch import load_file

    golden = load_file(reference("pipeline") / "golden.safetensors")
    vae = ea_vae.AutoencoderKLMagvit.from_pretrained(reference(f"vae_{kind}"))
    pipe = VideoPipeline(vae, FakeDenoiser())
    latents = golden["latents.dpmpp"]
    if kind == "slice":
        latents = torch.cat([latents, golden["latents.ddim"][:, :, :1]], dim=2)
    for key, smooth in (("decoded_unsmoothed", False), ("decoded", True)):
        found = np.stack(list(pipe.iter_frames(latents, smooth=smooth, seed=4321)))
        expected = golden[f"{key}.{kind}"][0].permute(1, 2, 3, 0).numpy() * 255
        assert np.abs(found - expected).max() < 0.51  # rounding to whole numbers
