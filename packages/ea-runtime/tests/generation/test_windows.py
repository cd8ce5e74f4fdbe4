"""Videos longer than the model: plans of windows, what they share, loops, pixels, resuming, prompts by time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.generation import groups
from ea_runtime.generation.decoding import frames_of
from ea_runtime.generation.known_frames import KnownFrames, encode_known_frames
from ea_runtime.generation.pipeline import VideoOutput, VideoPipeline
from ea_runtime.generation.requests import ModelRequest, Request
from ea_runtime.generation.resolve import resolve
from ea_runtime.generation.run_state import RunState
from ea_runtime.generation.window_frames import cut_request
from ea_runtime.generation.window_inputs import WindowInputs
from ea_runtime.generation.windows import Windows, plan_windows, recorded_settings
from ea_runtime.models.geometry import Geometry
from ea_runtime.models.layout import GenerationDefaults
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae

MAGVIT = Geometry()
SLICE = Geometry(is_slice=True, chunk_frames=8, chunk_latents=2)
LONG: dict[str, Any] = {
    "num_frames": 45,
    "height": 32,
    "width": 48,
    "num_inference_steps": 3,
    "seed": 3,
    "guidance_scale": 2.0,
}
OWN = GenerationDefaults(num_frames=18, fps=12)


class Mixing(FakeDenoiser):
    """Mixes the latent frames of a window, so that what a window makes depends on what it is given."""

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, *args: Any, inpaint_latents: Any = None, **more: Any
    ) -> SimpleNamespace:
        seen = hidden_states if inpaint_latents is None else hidden_states + inpaint_latents[:, 4:] / 4
        return super().forward(hidden_states + seen.mean(2, keepdim=True), timestep, *args, **more)


def make_pipe(channels: int = 4) -> VideoPipeline:
    denoiser = Mixing(in_channels=channels, out_channels=8) if channels == 12 else Mixing()
    return VideoPipeline(FakeVae(), denoiser, FakeTextEncoder(num_tokens=40), defaults=OWN)


def spans(windows: Windows) -> list[tuple[int, int, int, int]]:
    return [(one.start, one.stop, one.before, one.after) for one in windows.all]


def test_plans() -> None:
    assert spans(plan_windows(MAGVIT, 432, 144)) == [
        (0, 48, 0, 0),
        (36, 84, 12, 0),
        (72, 120, 12, 0),
        (96, 144, 24, 0),
    ]
    assert plan_windows(MAGVIT, 36, 18).joins == [18, 27]
    assert spans(plan_windows(SLICE, 33, 16)) == [(0, 3, 0, 0), (1, 5, 2, 0), (3, 7, 2, 0), (5, 9, 2, 0)]
    # both ends of the last window of a loop are known; a short one is longer by what it shares
    assert spans(plan_windows(MAGVIT, 36, 18, loop=True))[-1] == (6, 15, 3, 3)
    assert spans(plan_windows(MAGVIT, 18, 18, loop=True)) == [(0, 3, 0, 0), (0, 9, 3, 3)]
    assert plan_windows(MAGVIT, 432, 144, loop=True).longest == 144


@pytest.mark.parametrize("geometry", [MAGVIT, SLICE], ids=["magvit", "slice"])
@pytest.mark.parametrize("loop", [False, True])
def test_each_latent_frame_is_made_once_and_known_ones_before(geometry: Geometry, loop: bool) -> None:
    """Of every length and window that fits."""
    chunk = geometry.chunk_frames
    for window in range(2 * chunk, 8 * chunk, chunk):
        for count in range(2 * chunk, 24 * chunk + 2):
            if not geometry.fits(count) or (loop and count % chunk):
                continue
            windows = plan_windows(geometry, count, window, loop=loop)
            made = 0
            for one in windows.all:
                assert one.start + one.before == made, (window, count)
                assert one.after <= made
                assert one.stop - one.after > made
                assert geometry.num_latents(one.num_frames) == one.num_latents
                made = one.stop - one.after
            assert made == windows.num_latents
            assert windows.longest <= window + (max(1, window // chunk // 4) * chunk if loop else 0)
            assert windows.all[-1].last == count + (windows.all[-1].after // geometry.chunk_latents * chunk)


@pytest.mark.parametrize("sampler", ["euler-a", "dpm++", "unipc"])
def test_windows_share_noise_and_keep_what_is_known(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = groups.denoise
    monkeypatch.setattr(groups, "denoise", lambda *args, **more: seen.append(real(*args, **more)) or seen[-1])
    noise = torch.randn(1, 4, 15, 4, 6, generator=torch.Generator().manual_seed(1))
    settings = {**LONG, "sampler": sampler, "output": "latents"}
    long = make_pipe()("a red circle", latents=noise, **settings).latents
    assert len(seen) == 4
    for number, x in enumerate(seen[1:], 1):
        assert torch.equal(x[:, :, :3], long[:, :, 3 * number : 3 * number + 3])  # 0 differ
    first = make_pipe()("a red circle", latents=noise[:, :, :6], **{**settings, "num_frames": 18}).latents
    assert torch.equal(first, long[:, :, :6])
    # the twin: nothing is put back
    seen.clear()
    monkeypatch.setattr(KnownFrames, "put_back", lambda self, x, *args: x)
    make_pipe()("a red circle", latents=noise, **settings)
    assert not torch.equal(seen[1][:, :, :3], seen[0][:, :, 3:])


@pytest.mark.parametrize("geometry", [MAGVIT, SLICE], ids=["magvit", "slice"])
@pytest.mark.parametrize("loop", [False, True])
def test_later_windows_begin_from_the_noise_of_the_first(geometry: Geometry, loop: bool) -> None:
    frames, window = (144, 45) if geometry is MAGVIT else (144, 40)
    windows = plan_windows(geometry, frames, window, loop=loop)
    places = windows.noise_places
    drawn = max(one.num_latents for one in windows.all)
    assert places[:drawn] == list(range(drawn))
    assert max(places) < drawn
    new = [places[one.start + one.before : one.stop] for one in windows.all[1:-1]]
    assert len(new) > 1
    # in a loop, windows may be shifted against each other, so that its last one ends where it begins
    assert loop or all(one == new[0] for one in new)
    whole = plan_windows(geometry, frames)
    assert whole.noise_places == list(range(whole.num_latents))


def test_noise_that_is_given_is_that_of_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = groups.denoise

    def denoise(predict: Any, scheduler: Any, noise: Tensor, *args: Any, **more: Any) -> Tensor:
        seen.append(noise)
        return real(predict, scheduler, noise, *args, **more)

    monkeypatch.setattr(groups, "denoise", denoise)
    make_pipe()("a", **LONG, output="latents")
    assert all(torch.equal(one[:, :, 3:], seen[0][:, :, 3:]) for one in seen)
    given = torch.randn(1, 4, 15, 4, 6, generator=torch.Generator().manual_seed(1))
    seen.clear()
    make_pipe()("a", **LONG, latents=given, output="latents")
    assert [torch.equal(one, given[:, :, 3 * k : 3 * k + 6]) for k, one in enumerate(seen)] == [True] * 4


def test_what_fits_the_window_is_as_before() -> None:
    whole = make_pipe()("a", **{**LONG, "window": 45}).latents
    plain = VideoPipeline(FakeVae(), Mixing(), FakeTextEncoder(num_tokens=40))  # V2's own 144 frames
    assert torch.equal(plain("a", **LONG).latents, whole)
    assert "window" not in plain("a", **LONG).settings
    again = make_pipe()("a", **LONG)
    assert again.settings["window"] == 18
    assert torch.equal(make_pipe()(**again.settings).latents, again.latents)
    assert not torch.equal(again.latents, whole)


def test_channels_are_what_encoding_the_known_frames_gives() -> None:
    """For models of 12 channels: carried latents, and black in constant chunks."""
    pipe = make_pipe(12)
    windows = plan_windows(pipe.geometry, 45, 27)
    request = pipe_request(pipe, window=27)

    def encode(one: Any) -> Any:
        raise AssertionError("nothing is known")

    vae, geometry, config = pipe.vae, pipe.geometry, pipe.denoiser.config
    with torch.no_grad():
        inputs = WindowInputs(request, windows, vae, geometry, config, 1, encode, encode)
        video = torch.rand(1, 3, 45, 32, 48)
        made = torch.cat([vae.encode_video(one * 2 - 1) for one in video.split(9, dim=2)], 2) * geometry.scale
        first = inputs.of(0, range(1), [])
        second = inputs.of(1, range(1), [made[:, :, :9]])
        mask = torch.ones(1, 1, 27, 32, 48)
        nothing = encode_known_frames(vae, geometry, config, torch.zeros(1, 3, 27, 32, 48), mask)
        mask[:, :, :9] = 0
        wanted = encode_known_frames(vae, geometry, config, video[:, :, 18:], mask)
    assert first is not None
    assert first.inputs is not None
    assert second is not None
    assert second.inputs is not None
    assert torch.equal(first.inputs, nothing.inputs)
    assert torch.equal(second.inputs, wanted.inputs)
    assert not torch.equal(second.inputs, nothing.inputs)


def pipe_request(pipe: VideoPipeline, **more: Any) -> Any:
    return ModelRequest(**{**LONG, **more, "sampler": "euler", "smooth": True}).checked(
        pipe.geometry, defaults=pipe.defaults
    )


@pytest.mark.parametrize("channels", [4, 12])
def test_pictures_and_videos_apply_to_the_windows_that_have_them(channels: int) -> None:
    pipe = make_pipe(channels)
    first, last = torch.rand(3, 32, 48), torch.rand(3, 32, 48)
    windows = plan_windows(pipe.geometry, 45, 18)
    request = pipe_request(pipe, image=first, image_end=last)
    inputs = WindowInputs(
        request,
        windows,
        pipe.vae,
        pipe.geometry,
        pipe.denoiser.config,
        1,
        lambda one: (None, ()),
        lambda *_: iter(()),
    )
    known = [inputs._frames(one, range(1)) for one in windows.all]
    assert [one is None for one in known] == [False, True, True, False]
    start, end = known[0], known[-1]
    assert start is not None
    assert end is not None
    assert torch.equal(start[0][0, :, 0], first)
    assert start[1][0, 0, :, 0, 0].tolist() == [0] + [1] * 17
    assert torch.equal(end[0][0, :, -1], last)
    film = torch.rand(1, 3, 45, 32, 48)
    mask = torch.ones(1, 1, 45, 32, 48)
    mask[:, :, :, :, 24:] = 0
    inputs.request = replace(request, image=None, image_end=None, video=film, mask=mask)
    part = inputs._frames(windows.all[2], range(1))
    assert part is not None
    assert torch.equal(part[0], film[:, :, 18:36])
    assert torch.equal(part[1], mask[:, :, 18:36])


def test_clip_sees_the_first_frame_of_each_window_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined as pixels, CLIP sees the frame that a window begins with; carried as latents, the picture alone."""
    pipe = make_pipe(12)
    monkeypatch.setattr(pipe.denoiser.config, "enable_clip_in_inpaint", True, raising=False)
    seen: list[Any] = []

    def encode(one: Any) -> Any:
        seen.append(one.image)
        level = torch.as_tensor(one.image, dtype=torch.float32).mean()
        known = KnownFrames(torch.zeros(1), torch.zeros(1), None, torch.full((2, 768), float(level)))
        return known, ()

    def decode(latents: Tensor, count: int, start: int) -> Any:
        return iter(np.full((count - start, 32, 48, 3), 51, np.uint8))

    made = [torch.zeros(1, 4, 6, 4, 6)]
    for join, second in (("pixels", 0.2), ("latents", 0.7)):
        request = pipe_request(pipe, image=torch.full((3, 32, 48), 0.7))
        windows = plan_windows(pipe.geometry, 45, 18, join=join)
        parts = (pipe.vae, pipe.geometry, pipe.denoiser.config, 2)
        inputs = WindowInputs(request, windows, *parts, encode, decode)
        for number, level in ((0, 0.7), (1, second)):
            known = inputs.of(number, range(1, 2), made[:number])
            assert known is not None
            assert known.clip is not None
            assert known.clip.shape == (1, 768)
            # the other video of the batch is not there yet: black
            assert float(known.clip[0, 0]) == pytest.approx(level if level == 0.7 else level / 2)
    assert len(seen) == 3


def test_a_long_video_keeps_a_region_of_another(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(40, 216, (45, 4, 6, 3))
    film = np.kron(levels, np.ones((1, 8, 8, 1), np.uint8)).astype(np.uint8)
    film[1:] = film[0]
    mask = torch.ones(1, 1, 45, 32, 48)
    mask[..., 24:] = 0
    frames = make_pipe()("a", video=film, mask=mask, smooth=False, **LONG).frames
    assert frames is not None
    off = np.abs(frames[0].astype(float) - film)
    assert off[:, :, 24:].mean() < 1
    assert off[:, :, :24].mean() > 5
    with pytest.raises(UserError, match=r"`video` must have 45 frames or more, got 20"):
        make_pipe()("a", video=film[:20], **LONG)
    with pytest.raises(UserError, match=r"`mask` must be a picture or a video of 45 frames, got 20"):
        make_pipe()("a", video=film, mask=film[:20], **LONG)


def test_a_loop_is_known_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = groups.denoise
    monkeypatch.setattr(groups, "denoise", lambda *args, **more: seen.append(real(*args, **more)) or seen[-1])
    result = make_pipe()("a", loop=True, **LONG)
    assert result.frames is not None
    assert result.frames.shape[1] == 45
    assert torch.equal(seen[-1][:, :, -3:], result.latents[:, :, :3])
    assert torch.equal(seen[-1][:, :, :3], result.latents[:, :, 9:12])
    # one window would do without the loop
    short = make_pipe()("a", loop=True, **{**LONG, "num_frames": 18})
    assert short.settings["window"] == 18
    assert torch.equal(seen[-1][:, :, :3], seen[-1][:, :, -3:])
    # the twin
    make_pipe()("a", **LONG)
    assert not torch.equal(seen[-1][:, :, -3:], result.latents[:, :, :3])


@pytest.mark.parametrize("more", [{}, {"loop": True}, {"join": "pixels"}], ids=str)
def test_decoding_begins_anywhere(more: dict[str, Any]) -> None:
    pipe = make_pipe()
    result = pipe("a", **LONG, **more)
    assert result.frames is not None
    for start in (1, 17, 18, 20, 30, 44):
        assert np.array_equal(np.stack(list(frames_of(pipe, result, start=start))), result.frames[0, start:])


def test_pixels_are_blended() -> None:
    pipe = make_pipe()
    result = pipe("a", join="pixels", smooth=False, **LONG)
    assert result.frames is not None
    assert result.latents.shape[2] == 4 * 6
    parts = [
        np.stack(list(pipe.iter_frames(result.latents[0, :, i : i + 6], smooth=False)))
        for i in range(0, 24, 6)
    ]
    share = np.arange(9)[:, None, None, None] / 9
    mixed = (parts[0][9:] * (1 - share) + parts[1][:9] * share).round().astype(np.uint8)
    assert np.array_equal(result.frames[0, 9:18], mixed)
    assert np.array_equal(result.frames[0, :9], parts[0][:9])
    assert not torch.equal(pipe("a", **LONG).latents[:, :, 6:9], result.latents[:, :, 9:12])


class Stopped(Exception):
    pass


def ended_and_resumed(folder: Path, step: int, channels: int, **settings: Any) -> VideoOutput:
    """The result of a run that is ended after pass `step` and resumed."""

    def end(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("denoising", step):
            raise Stopped

    runs = [RunState(folder, {"a": 1}, first_after=0, every=0) for _ in range(2)]
    assert runs[0].begin() is None
    with pytest.raises(Stopped):
        make_pipe(channels)(["one", "two"], on_step=end, run=runs[0], **settings)
    found = runs[1].begin()
    assert found is not None
    assert found.done == step
    return make_pipe(channels)(["one", "two"], run=runs[1], **settings)


@pytest.mark.parametrize(
    ("channels", "more"),
    [
        (4, {"sampler": "euler-a"}),
        (12, {"sampler": "dpm++"}),
        (4, {"loop": True, "sampler": "unipc", "batch_size": 2}),
        (4, {"join": "pixels", "sampler": "euler-a"}),
    ],
    ids=str,
)
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, channels: int, more: dict[str, Any]) -> None:
    settings = {**LONG, "num_frames": 36, **more}
    whole = make_pipe(channels)(["one", "two"], **settings)
    total = 9 * (1 if "batch_size" in more else 2)
    for step in sorted({1, 3, 4, 8, total - 1}):
        resumed = ended_and_resumed(tmp_path / str(step), step, channels, **settings)
        assert torch.equal(resumed.latents, whole.latents), step
        assert np.array_equal(resumed.frames, whole.frames), step


def test_a_place_without_its_windows_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    whole = make_pipe()(["one", "two"], **LONG)
    real = groups.place_of
    monkeypatch.setattr(groups, "place_of", lambda state: replace(real(state), made=[]))
    resumed = ended_and_resumed(tmp_path / "run", 5, 4, **LONG)
    assert not torch.equal(resumed.latents, whole.latents)


def test_prompts_by_time() -> None:
    pipe = make_pipe()
    plain = pipe("a red circle", **LONG)
    timed = pipe(prompts_at="0s: a red circle | 2.25s: a blue one", **LONG)
    assert timed.settings["prompt"] == "a red circle"
    assert timed.settings["prompts_at"] == [["27f", "a blue one"]]
    assert torch.equal(timed.latents[:, :, :9], plain.latents[:, :, :9])
    assert not torch.equal(timed.latents[:, :, 9:12], plain.latents[:, :, 9:12])
    again = pipe("a red circle", prompts_at=[(2.25, "a blue one")], **LONG)
    assert torch.equal(again.latents, timed.latents)
    assert torch.equal(pipe(**timed.settings).latents, timed.latents)


BAD = [
    ({"prompts_at": "a red circle"}, "`prompts_at` must be such as"),
    ({"prompts_at": "1s a | 2s: b"}, "`prompts_at` must be such as"),
    ({"prompts_at": "1s: a | b"}, "`prompts_at` must be such as"),
    ({"prompts_at": "-1s: a"}, "`prompts_at` must be such as"),
    ({"prompts_at": "1.5f: a"}, "`prompts_at` must be such as"),
    ({"prompts_at": "2s: "}, "`prompts_at` must be such as"),
    ({"prompts_at": []}, "`prompts_at` must be such as"),
    ({"prompts_at": [(float("nan"), "a")]}, "`prompts_at` must be such as"),
    ({"prompts_at": [("1s",)]}, "pairs of a time and a text"),
    ({"prompts_at": "9s: a"}, "frame 108, and the video has 45 frames at 12 fps"),
    ({"prompts_at": "2s: a | 1s: b"}, "rising times, got 1s after 2s"),
    ({"prompts_at": "0s: a"}, "there is a prompt"),
    ({"prompts_at": "40f: a"}, "40f would have no effect before 45f; windows begin at 18f, 27f, 36f"),
    ({"prompts_at": "18f: a", "window": 45}, "made in one piece"),
    ({"window": 9}, "`window` must be at least 18 frames, two chunks of the VAE, got 9"),
    ({"window": 20}, "`window` must be 1 or a multiple of 9, got 20; use 18 or 27"),
    ({"window": "18"}, "`window` must be a whole number"),
    ({"join": "blend"}, "`join` must be one of latents, pixels"),
    ({"join": "pixels", "window": 45}, "made in one piece"),
    ({"join": "pixels", "loop": True}, "a loop is joined as latents"),
    ({"loop": 3}, "`loop` must be True or False"),
    ({"loop": True, "num_frames": 9}, "`loop` needs a multiple of 9 frames and at least 18, got 9; use 18"),
    ({"num_frames": 200_007}, "at most 100,000"),
]


@pytest.mark.parametrize("kind", ["array", "list", "tensor"])
def test_the_last_window_of_a_loop_sees_the_first_frames_of_a_video_again(kind: str) -> None:
    """uint8, as a tensor float32. Frame n is of the level n."""
    frames = np.broadcast_to(np.arange(36, dtype=np.uint8)[:, None, None, None], (36, 8, 8, 3)).copy()
    video: Any = frames
    if kind == "list":
        video = [Image.fromarray(frame) for frame in frames]
    elif kind == "tensor":
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float()
    last = plan_windows(MAGVIT, 36, 18, loop=True).all[-1]
    part = cut_request(Request(video=video, num_frames=36), last.first, last.last)
    if kind == "tensor":
        levels = part.video[0, 0, :, 0, 0].tolist()
    else:
        levels = [int(np.asarray(frame)[0, 0, 0]) for frame in part.video]
    assert part.num_frames == last.num_frames == len(levels)
    assert last.last > 36
    assert levels == [n % 36 for n in range(last.first, last.last)]


@pytest.mark.parametrize(("more", "words"), BAD, ids=[str(more) for more, _ in BAD])
def test_what_cannot_be_is_one_line(more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        make_pipe()("a", **{**LONG, **more})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_windows_have_positions_not_videos() -> None:
    denoiser = Mixing(motion_module_kwargs={"temporal_position_encoding_max_len": 7})
    pipe = VideoPipeline(FakeVae(), denoiser, FakeTextEncoder())
    assert pipe("a", output="latents", **LONG).settings["window"] == 18  # of V2's 144, what fits
    with pytest.raises(UserError, match=r"`window` must be at most 18 for this denoiser, got 27"):
        pipe("a", window=27, **LONG)
    with pytest.raises(UserError, match="at most 18"):
        pipe("a", loop=True, **LONG)


def test_an_engine_of_a_fixed_size_makes_windows_of_that_length() -> None:
    class Fixed:
        def check(self, num_frames: int, height: int, width: int) -> None:
            if num_frames != 18:
                raise UserError(f"this bundle makes 18 frames, got {num_frames} frames")

    pipe = make_pipe()
    pipe.engine = Fixed()
    assert pipe("a", **LONG).latents.shape[2] == 15
    with pytest.raises(UserError, match="windows of this video have 27 frames"):
        pipe("a", window=27, **LONG)


def record_of(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "settings": settings,
        "fps": 12,
        "model": {"name": "tiny", "sha256": ""},
        "device": {"device": "cpu", "dtype": "float32"},
    }


def test_a_record_without_a_window_is_of_one_piece() -> None:
    """As those of versions without windows; what is recorded of it again is the same."""
    new = resolve(ModelRequest(prompt="a", num_frames=27)).request
    assert new.window == 18
    assert recorded_settings(new.settings)["window"] == 18
    old = {name: value for name, value in new.settings.items() if name != "window"}
    again = resolve(ModelRequest(prompt="a"), recorded=record_of(old)).request
    assert again.window == 27
    assert recorded_settings(again.settings) == old
    assert resolve(ModelRequest(prompt="a"), recorded=record_of(new.settings)).request.window == 18
    longer = resolve(ModelRequest(prompt="a", num_frames=36), recorded=record_of(old)).request
    assert longer.window == 18
