"""What may be asked for: every wrong request is one line that says what to do, before any work."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.generation.requests import (
    ModelRequest,
    Request,
    check_guidance,
    check_negatives,
    check_prompts,
    check_sampler,
    check_seeds,
    random_seed,
)
from ea_runtime.models.geometry import Geometry, latent_scale
from ea_runtime.models.layout import GenerationDefaults
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae

SMALL = {"num_frames": 9, "height": 32, "width": 32, "num_inference_steps": 1, "seed": 1}
MAGVIT = Geometry()
SLICE = Geometry(is_slice=True, chunk_frames=8, chunk_latents=2)


@pytest.fixture
def pipe() -> VideoPipeline:
    class Untouched(FakeDenoiser):
        def forward(self, *args, **kwargs):
            raise AssertionError("work began")

    class Unread(FakeTextEncoder):
        def encode(self, prompts):
            raise AssertionError("work began")

    return VideoPipeline(
        FakeVae(),
        Untouched(motion_module_kwargs={"temporal_position_encoding_max_len": 64}),
        Unread(),
    )


BAD = [
    ({"num_frames": 20}, "`num_frames` must be 1 or a multiple of 9, got 20; use 18 or 27"),
    ({"num_frames": 5}, "use 1 or 9"),
    ({"num_frames": 0}, "got 0; use 1"),
    ({"num_frames": -3}, "got -3; use 1"),
    ({"num_frames": 9.0}, "whole number, got float 9.0"),
    ({"num_frames": True}, "whole number, got bool True"),
    ({"num_frames": "9"}, "whole number, got str '9'"),
    ({"num_frames": 9 * 64, "window": 198}, "`window` must be at most 189 for this denoiser, got 198; use 189"),
    ({"num_frames": 198, "window": 198}, "at most 189 for this denoiser, got 198; use 189"),
    ({"num_frames": 1_000_000}, "`num_frames` must be at most 100,000"),
    ({"height": 100, "width": 100}, "multiples of 16, got 100x100 (width x height); use 96x96 or 112x112"),
    ({"height": 0}, "use 32x16"),
    ({"height": "32"}, "`height` must be a whole number"),
    ({"height": 1 << 40}, "pixels"),
    ({"num_inference_steps": 0}, "from 1 to 1000, got 0"),
    ({"num_inference_steps": 10**9}, "from 1 to 1000"),
    ({"num_inference_steps": 2.5}, "`num_inference_steps` must be a whole number"),
    ({"num_inference_steps": 2, "sampler": "pndm"}, "not possible with sampler 'pndm'; use 4"),
    ({"num_inference_steps": 1000, "sampler": "ddim"}, "use 999"),
    ({"guidance_scale": float("nan")}, "`guidance_scale` must be a finite number"),
    ({"guidance_scale": float("inf")}, "finite"),
    ({"guidance_scale": -1}, "finite number from 0"),
    ({"guidance_scale": "6"}, "must be a number"),
    ({"sampler": "eulr"}, "there are: euler, euler-a, dpm++, pndm, ddim, unipc"),
    ({"sampler": 3}, "`sampler` must be one of euler"),
    ({"seed": -1}, "`seed`"),
    ({"seed": 1 << 64}, "`seed`"),
    ({"seed": 1.5}, "`seed`"),
    ({"seed": [1, 2]}, "list of 1"),
    ({"generator": torch.Generator()}, "either `seed` or `generator`"),
    ({"seed": None, "generator": 3}, "torch.Generator"),
    ({"prompt": None}, "either `prompt` or `prompt_embeds`, got neither"),
    ({"prompt_embeds": torch.zeros(1, 2, 8)}, "got both"),
    ({"prompt": 5}, "`prompt` must be text or a list of texts, got int 5"),
    ({"prompt": ["a", 5]}, "got a list with int 5"),
    ({"prompt": []}, "at least one text"),
    ({"prompt": "x" * (1 << 20)}, "16,384"),
    ({"negative_prompt": "x" * (1 << 20)}, "`negative_prompt` must take at most"),
    ({"negative_prompt": ["a", "b"]}, "list of 1"),
    ({"latents": torch.zeros(1, 4, 4, 4)}, "`latents` must be a tensor"),
    ({"latents": torch.zeros(1, 3, 3, 4, 4)}, "shape (1, 4, 3, 4, 4)"),
    ({"latents": torch.zeros(1, 4, 4, 4, 4), "num_frames": None}, "multiple of 3, got 4"),
    ({"output": "pil"}, "'frames' or 'latents'"),
    ({"smooth": 1}, "`smooth`"),
    ({"batch_size": 0}, "`batch_size`"),
    ({"prompt": ["x"] * 100, "height": 1024, "width": 1024}, "fewer prompts"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), BAD, ids=[str(m) for _, m in BAD])
def test_a_wrong_request_is_one_line_before_any_work(pipe, wrong, message):
    with pytest.raises(UserError) as error:
        pipe(**{"prompt": "x"} | SMALL | wrong)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "x"}, "needs a text encoder"),
        ({"prompt_embeds": torch.zeros(1, 2, 8)}, "negative_prompt_embeds"),
        ({"prompt_embeds": torch.zeros(2, 8)}, "(B, tokens, channels), got (2, 8)"),
        ({"prompt_embeds": [1]}, "got list"),
        (
            {"prompt_embeds": torch.zeros(1, 2, 8), "prompt_attention_mask": torch.ones(1, 3)},
            "shape (1, 2), got (1, 3)",
        ),
        (
            {"prompt_embeds": torch.zeros(1, 2, 8), "negative_prompt_embeds": torch.zeros(1, 3, 8)},
            "(2, 8) tokens and channels like `prompt_embeds`, got (3, 8)",
        ),
        (
            {"prompt_embeds": torch.zeros(1, 2, 8), "negative_prompt_embeds": torch.zeros(2, 2, 8)},
            "1 or 1 texts, got 2",
        ),
    ],
)
def test_embeddings_are_checked(given, message):
    pipe = VideoPipeline(FakeVae(), FakeDenoiser())
    with pytest.raises(UserError) as error:
        pipe(**SMALL, **given)
    assert message in str(error.value)


def test_a_pipeline_needs_a_denoiser_and_knows_its_engines(tmp_path):
    with pytest.raises(UserError, match="`denoiser`"):
        VideoPipeline(FakeVae())
    with pytest.raises(UserError, match="'warp'"):
        VideoPipeline.from_pretrained("tiny", engine="warp")
    with pytest.raises(UserError, match="no model folder"):
        VideoPipeline.from_pretrained(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"(?i)has no vae"):
        VideoPipeline.from_pretrained(tmp_path, device="cpu")


def test_an_oversized_request_is_refused_before_any_work(pipe):
    with pytest.raises(UserError, match="16,384"):
        pipe("x" * (1 << 20), **SMALL)
    with pytest.raises(
        UserError, match=r"at most 268,435,456 pixels, got 65536x65536; use up to 16384x16384"
    ):
        pipe("x", **SMALL | {"height": 65536, "width": 65536})


@pytest.mark.parametrize("frames", [1, 9, 18, 144])
def test_magvit_frames_and_latent_frames(frames):
    latents = MAGVIT.num_latents(frames)
    assert latents == (1 if frames == 1 else frames // 3)
    assert MAGVIT.num_frames(latents) == frames
    assert MAGVIT.temporal_ratio == 4


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (8, 2), (9, 3), (13, 4), (25, 7), (144, 36)])
def test_slice_frames_and_latent_frames(frames, latents):
    assert SLICE.check_num_frames(frames) == frames
    assert SLICE.num_latents(frames) == latents


def test_slice_numbers_that_do_not_fit():
    with pytest.raises(UserError, match="a multiple of 4, or one more, got 6; use 5 or 8"):
        SLICE.check_num_frames(6)
    with pytest.raises(UserError, match="got 2; use 1 or 4"):
        SLICE.check_num_frames(2)


@pytest.mark.parametrize("is_slice", [False, True])
def test_geometry_agrees_with_the_vae(is_slice):
    ea_vae = pytest.importorskip("ea_vae")
    small = {"ch": 8, "ch_mult": [1, 1, 1, 1], "layers_per_block": 1, "norm_num_groups": 4}
    chunk = (
        {"slice_compression_vae": True, "mini_batch_encoder": 8, "mini_batch_decoder": 2} if is_slice else {}
    )
    vae = ea_vae.AutoencoderKLMagvit(**small, **chunk).eval()
    geometry = Geometry.from_configs(vae.config)
    assert geometry.spatial_ratio == 8
    for frames in [n for n in range(1, 28) if geometry.fits(n)]:
        latents = geometry.num_latents(frames)
        assert vae.num_latents_for(frames) == latents
        z = torch.zeros(1, 4, latents, 2, 2)
        decoded = sum(part.shape[2] for part in vae.iter_decode(z, smooth=True, num_frames=frames))
        assert decoded == frames


def test_published_configs():
    vae = {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3],
        "latent_channels": 4, "scaling_factor": 0.18215, "mini_batch_encoder": 9, "mini_batch_decoder": 3,
        "slice_compression_vae": False,
    }  # fmt: skip
    denoiser = {
        "in_channels": 4, "patch_size": 2, "motion_module_type": "Vanilla",
        "motion_module_kwargs": {"temporal_position_encoding_max_len": 4096, "block_size": 1},
    }  # fmt: skip
    assert Geometry.from_configs(vae, denoiser) == Geometry(max_latent_frames=4096)
    grid = denoiser | {"motion_module_type": "VanillaGrid", "motion_module_kwargs": {"block_size": 2}}
    assert Geometry.from_configs(vae, grid).size_multiple == 32
    assert Geometry.from_configs(None, None) == Geometry()


def test_what_latents_are_divided_by():
    assert latent_scale(None) == latent_scale({"scaling_factor": 0.1825}) == 0.18215
    assert latent_scale(SimpleNamespace(scaling_factor=0.5)) == 0.5


def test_seeds_count_up():
    assert check_seeds(43, 3) == [43, 44, 45]
    assert check_seeds([5, 5], 2) == [5, 5]


def test_the_last_seed_of_several_videos_has_32_bits():
    assert check_seeds(2**32 - 3, 3) == [2**32 - 3, 2**32 - 2, 2**32 - 1]
    with pytest.raises(
        UserError, match=r"`seed` must be at most 4,294,967,293 for 3 videos, .* got 4294967294"
    ):
        check_seeds(2**32 - 2, 3)
    with pytest.raises(UserError, match="4,294,967,293 for 3 videos"):
        check_seeds(2**32 - 1, 3)
    with pytest.raises(UserError, match="so 5 draws the same"):
        check_seeds(2**32 + 5, 3)


def test_a_request_has_the_arguments_of_a_call():
    call = set(inspect.signature(VideoPipeline.__call__).parameters) - {
        "self",
        "on_step",
        "on_preview",
        "run",
    }
    assert {one.name for one in fields(Request)} == call


def test_the_first_source_that_has_a_value_wins():
    first, second = Request(smooth=False, seed=0), Request(smooth=True, seed=1, num_frames=9)
    assert first.over(Request(), second).settings == {"smooth": False, "seed": 0, "num_frames": 9}
    assert second.over(first).settings == second.settings


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_scheduler_is_built_once_for_each_group(monkeypatch, batch_size):
    built = []

    def counted(name):
        record = check_sampler(name)

        def build(**config):
            built.append(name)
            return record.build(**config)

        return SimpleNamespace(name=record.name, build=build)

    monkeypatch.setattr("ea_runtime.generation.pipeline.check_sampler", counted)
    pipe = VideoPipeline(None, FakeDenoiser(), FakeTextEncoder())
    pipe(["x"] * 4, output="latents", batch_size=batch_size, **SMALL)
    assert len(built) == -(-4 // batch_size)


def test_checking_a_request_imports_no_torch():
    code = "import sys, ea_runtime.generation.requests; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_pipeline_with_a_larger_budget_takes_larger_sizes():
    size = Geometry().check_size(16384, 32768, 1 << 29)
    assert size == (16384, 32768)
    with pytest.raises(
        UserError, match=r"at most 268,435,456 pixels, got 32768x16384; use up to 16384x16384"
    ):
        Geometry().check_size(16384, 32768)


# --- a request by itself, without a pipeline -----------------------------------------------------------------

OWN = GenerationDefaults(num_frames=18, fps=12, height=64, width=96, steps=3, guidance=2.0, sampler="ddim")


def request(**more):
    given = {"num_frames": 18, "height": 32, "width": 48, "num_inference_steps": 3, "guidance_scale": 2.0}
    return Request(**{"prompt": "a", "sampler": "euler", "smooth": True, "output": "frames", **given, **more})


def refused(call, *arguments, **more):
    with pytest.raises(UserError) as error:
        call(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_request_is_of_arguments_or_of_a_model():
    assert Request.of({"seed": 1, "self": 2, "prompt": None, "other": 3}) == Request(seed=1)
    assert Request.of_model(OWN, seed=7).settings == {
        "num_frames": 18,
        "height": 64,
        "width": 96,
        "num_inference_steps": 3,
        "guidance_scale": 2.0,
        "sampler": "ddim",
        "seed": 7,
    }
    assert Request().settings == {}
    with pytest.raises(AttributeError):
        Request().seed = 1
    with pytest.raises(TypeError):
        Request("a prompt")
    with pytest.raises(TypeError):
        ModelRequest("a prompt")


def test_a_checked_request_has_whole_numbers_and_settled_windows():
    found = request(num_frames=45, guidance_scale=2, seed=1).checked(MAGVIT, defaults=OWN)
    assert found.settings == request(num_frames=45, window=18, seed=1).settings
    assert type(found.guidance_scale) is float
    whole = request(window=18, loop=False, join="latents").checked(MAGVIT, defaults=OWN)
    assert (whole.window, whole.loop, whole.join) == (None, None, None)
    assert len(whole.windows(MAGVIT)) == 1
    loop = request(loop=True).checked(MAGVIT, defaults=OWN)
    assert (loop.window, loop.loop, loop.windows(MAGVIT).is_loop) == (18, True, True)
    pixels = request(num_frames=45, join="pixels").checked(MAGVIT, defaults=OWN)
    assert (pixels.join, pixels.windows(MAGVIT).is_pixels) == ("pixels", True)
    assert request(num_frames=144).checked(MAGVIT).window is None  # V2's own number


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"join": "mix"}, "`join` must be one of latents, pixels, got str 'mix'"),
        (
            {"join": "pixels"},
            "`join` 'pixels' is for videos of several windows, and this video is made in one piece",
        ),
        ({"join": "pixels", "loop": True}, "and a loop is joined as latents; leave it out"),
        ({"loop": 2}, "`loop` must be True or False, got int 2"),
        ({"loop": "yes"}, "`loop` must be True or False"),
        ({"num_frames": 100_001}, "`num_frames` must be at most 100,000, got 100,001"),
        ({"num_frames": 20}, "use 18 or 27"),
        ({"num_frames": 45, "window": 9}, "`window` must be at least 18 frames"),
        ({"num_frames": 45, "window": 20}, "`window` must be 1 or a multiple of 9, got 20; use 18 or 27"),
        ({"num_inference_steps": 0}, "from 1 to 1000, got 0"),
        ({"num_inference_steps": 1001}, "from 1 to 1000, got 1001"),
        ({"smooth": None}, "`smooth` must be True or False, got None"),
        ({"step_cache": "x"}, "x"),
        ({"sampler": None}, "`sampler` must be one of euler, euler-a, "),
        ({"sampler": "x"}, "no sampler is called 'x'"),
    ],
)
def test_each_wrong_value_is_refused(more, message):
    assert message in refused(request(**more).checked, MAGVIT, defaults=OWN)


def test_the_most_frames_and_steps():
    most = request(num_frames=100_000, window=16, output="latents")
    assert most.checked(SLICE, defaults=OWN).num_frames == 100_000
    assert request(num_inference_steps=1000).checked(MAGVIT, defaults=OWN).num_inference_steps == 1000
    assert "for this denoiser" in refused(
        request(num_frames=45, window=27).checked, replace(MAGVIT, max_latent_frames=6)
    )
    six = request(num_frames=45, window=18).checked(replace(MAGVIT, max_latent_frames=6), defaults=OWN)
    assert six.window == 18  # positions bound a window, not the video


def test_what_is_in_memory_at_once_is_bound():
    """All frames of the videos, or with output "latents" those of a window."""
    frames = {"num_frames": 45, "window": 18}
    request(**frames).checked(MAGVIT, 2, 2 * 45 * 32 * 48, OWN)
    assert "at most" in refused(request(**frames).checked, MAGVIT, 2, 2 * 45 * 32 * 48 - 1, OWN)
    request(**frames, output="latents").checked(MAGVIT, 2, 2 * 18 * 32 * 48, OWN)
    assert "at most" in refused(
        request(**frames, output="latents").checked, MAGVIT, 2, 2 * 18 * 32 * 48 - 1, OWN
    )
    assert request().checked(MAGVIT, max_pixels=18 * 32 * 48, defaults=OWN)
    assert "at most" in refused(request().checked, MAGVIT, max_pixels=18 * 32 * 48 - 1, defaults=OWN)


def test_prompts_by_time_count_in_the_models_frames():
    """Or, where a request has a frame rate, in its own."""
    long = {"num_frames": 45, "prompts_at": "1s: b | 2s: c"}
    assert request(**long).checked(MAGVIT, defaults=OWN).prompts_at == [["12f", "b"], ["24f", "c"]]
    own = OWN.model_copy(update={"fps": 10})
    assert request(**long).checked(MAGVIT, defaults=own).prompts_at == [["10f", "b"], ["20f", "c"]]
    model = ModelRequest(**request(**long).settings, model="tiny", fps=16)
    assert model.checked(MAGVIT, defaults=OWN).prompts_at == [["16f", "b"], ["32f", "c"]]
    assert "have rising times" in refused(
        request(**long | {"prompts_at": "2s: b | 1s: c"}).checked, MAGVIT, defaults=OWN
    )


def test_the_text_at_the_beginning_is_the_prompt():
    both = request(prompt=None, prompts_at="0s: a | 1s: b").with_first_prompt()
    assert (both.prompt, both.prompts_at) == ("a", [["1s", "b"]])
    later = request(prompts_at="1s: b").with_first_prompt()
    assert (later.prompt, later.prompts_at) == ("a", [["1s", "b"]])
    alone = request(prompt=None, prompts_at="0f: a").with_first_prompt()
    assert (alone.prompt, alone.prompts_at) == ("a", None)
    assert request().with_first_prompt() == request()
    for more in ({"prompt": "x"}, {"prompt": None, "prompt_embeds": torch.zeros(1, 2, 8)}):
        assert "there is a prompt" in refused(request(prompts_at="0s: a", **more).with_first_prompt)


@pytest.mark.parametrize(
    ("guidance", "has"), [(0, False), (1, False), (1.0, False), (1.001, True), (1000, True)]
)
def test_guidance_above_one_needs_a_second_pass(guidance, has):
    assert request(guidance_scale=guidance).has_guidance is has
    assert check_guidance(guidance) == guidance


@pytest.mark.parametrize("wrong", [-0.1, 1000.1, 10**400, float("nan"), float("-inf"), True, "2", None, 2j])
def test_guidance_is_a_number_from_0_to_1000(wrong):
    assert "`guidance_scale` must be a" in refused(check_guidance, wrong)


def test_what_is_not_used_or_far_from_the_model_is_noted():
    size = {"height": 64, "width": 96}
    assert request(**size).notes(OWN) == []
    note = "the negative prompt is not used at guidance 1; give guidance above 1"
    for negative in ("x", ["", "x"]):
        assert request(**size, negative_prompt=negative, guidance_scale=1).notes(OWN) == [note]
        assert request(**size, negative_prompt=negative, guidance_scale=2).notes(OWN) == []
    for negative in ("", ["", ""], None):
        assert request(**size, negative_prompt=negative, guidance_scale=1).notes(OWN) == []
    far = "is far from 96x64, the size that suits this model; expect poorer pictures"
    for height, width, is_far in ((64, 288, False), (64, 304, True), (64, 32, False), (48, 32, True)):
        found = request(height=height, width=width).notes(OWN)
        assert found == ([f"{width}x{height} {far}"] if is_far else [])


def test_seeds_of_several_videos():
    assert check_seeds(0, 1) == [0]
    assert check_seeds((1, 2), 2) == [1, 2]
    assert check_seeds(2**32 - 1, 1) == [2**32 - 1]
    assert check_seeds([2**32 - 1] * 2, 2) == [2**32 - 1] * 2
    assert "must be one number or a list of 2, one for each video, got 1" in refused(check_seeds, [1], 2)
    assert "`seed` must be a whole number of 0 or more, got -1" in refused(check_seeds, [-1, 1], 2)
    assert "`seed` must be a whole number of 0 or more, got str '1'" in refused(check_seeds, "1", 1)
    assert "`seed` must be a whole number" in refused(check_seeds, b"1", 1)
    line = refused(check_seeds, 2**32, 1)
    assert (
        "at most 4,294,967,295, got 4294967296; the noise depends on the low 32 bits alone, so 0 draws"
        in line
    )


def test_a_seed_at_random_leaves_room_for_a_batch(monkeypatch):
    found = {random_seed() for _ in range(50)}
    assert len(found) > 40
    monkeypatch.setattr(
        "ea_runtime.generation.requests.os.urandom", lambda count: b"\xff" * (count - 1) + b"\xfe"
    )
    assert random_seed() == 0x7FFFFFFF
    monkeypatch.setattr("ea_runtime.generation.requests.os.urandom", lambda count: b"\1" + bytes(count - 1))
    assert random_seed() == 1 << 23  # as the first byte is the highest


def test_prompts_are_texts():
    assert check_prompts("a") == ["a"]
    assert check_prompts(("a", "b")) == ["a", "b"]
    assert check_prompts("") == [""]
    for wrong, message in (
        (None, "`prompt` must be text or a list of texts, got NoneType None"),
        ({"a"}, "`prompt` must be text or a list of texts, got set"),
        ([], "`prompt` must hold at least one text, got an empty list; an empty prompt is ''"),
        (["a", None], "got a list with NoneType None"),
        ("x" * 20_000, "`prompt` must take at most"),
    ):
        assert message in refused(check_prompts, wrong)
    assert "`mine` must be text" in refused(check_prompts, 7, "mine")


def test_negative_prompts_are_one_or_one_for_each():
    assert check_negatives(None, 2) == ["", ""]
    assert check_negatives("a", 2) == ["a", "a"]
    assert check_negatives(["a", "b"], 2) == ["a", "b"]
    line = refused(check_negatives, ["a", "b", "c"], 2)
    assert "`negative_prompt` must be one text or a list of 2, one for each prompt, got 3" in line
    assert "`negative_prompt`" in refused(check_negatives, 7, 1)
