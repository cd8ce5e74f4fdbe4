"""The set as the denoiser sees it: coded once, kept in one file, keyed by what it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ea_runtime.errors import UserError
from ea_runtime.training import encoded
from ea_runtime.training.clips import ClipSet, to_float
from ea_runtime.training.encoded import EncodedSet
from ea_runtime.training.recipe import Context

MakeSet = Callable[..., Path]


@pytest.fixture
def lines() -> list[str]:
    """What was said."""
    return []


@pytest.fixture
def read(parts: Path, make_set: MakeSet, lines: list[str], tmp_path: Path) -> Callable[..., EncodedSet]:
    """read(kinds="both", num_frames=9): the set of 3 pictures and 2 clips as the denoiser sees it."""
    folder = make_set()
    context = Context(seed=0, device="cpu", out=tmp_path / "run", say=lines.append)

    def make(kinds: Any = "both", num_frames: int = 9) -> EncodedSet:
        return EncodedSet(folder, parts, num_frames, kinds, context)

    return make


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "set" / "cache").iterdir())


def test_shapes_and_latents(
    read: Callable[..., EncodedSet], parts: Path, small: ModuleType, tmp_path: Path
) -> None:
    coded = read()
    picture, clip = ("image", 4, 1, 2, 2), ("video", 4, 3, 2, 2)
    assert coded.shapes == [picture] * 3 + [clip] * 2
    assert coded.scale == 0.5
    clips = ClipSet(tmp_path / "set")
    vae = small.SmallVae()
    vae.gain.data = load_file(parts / "vae" / "diffusion_pytorch_model.safetensors")["gain"]
    for indices in ([2, 0], [3, 4]):
        frames = torch.from_numpy(to_float([clips.frames(i) for i in indices]))
        expected = 0.5 * vae.encode_video(frames)  # the scaling factor is in
        latents = coded.latents(indices)
        assert latents.dtype == torch.float32
        assert latents.shape == expected.shape
        assert (latents - expected).abs().max() < 5e-3  # the posterior's draw, and fp16


def test_the_scale_is_the_one_that_sampling_uses(read: Callable[..., EncodedSet], parts: Path) -> None:
    """V2's class default 0.1825 was never in use: the pipeline takes it for 0.18215, and so must training."""
    path = parts / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scaling_factor": 0.1825}))
    assert read().scale == 0.18215


def test_the_file_is_made_once(
    read: Callable[..., EncodedSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read()
    names = files(tmp_path)
    assert len(names) == 1
    assert names[0].startswith("encoded-")
    monkeypatch.setattr(encoded, "_code", lambda *_: pytest.fail("coded again"))
    again = read()
    assert torch.equal(first.latents([0, 1]), again.latents([0, 1]))
    for kinds in ("videos", "pictures"):  # the same file
        read(kinds)
    assert files(tmp_path) == names


def test_kinds_choose_samples(read: Callable[..., EncodedSet]) -> None:
    both, videos, pictures = read(), read("videos"), read("pictures")
    assert (len(videos.shapes), len(pictures.shapes)) == (2, 3)
    assert torch.equal(videos.latents([0, 1]), both.latents([3, 4]))
    assert torch.equal(pictures.latents([2]), both.latents([2]))
    for one, other in ((videos.text([1], [False]), both.text([4], [False])),):
        assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("changed", ["vae", "text encoder", "tokenizer", "captions", "frames"])
def test_the_key_changes_with_what_it_was_made_from(
    changed: str, read: Callable[..., EncodedSet], parts: Path, tmp_path: Path
) -> None:
    before = read()
    if changed in ("vae", "text encoder"):
        part = "vae" if changed == "vae" else "text_encoder"
        path = next((parts / part).glob("*.safetensors"))
        save_file({k: v * 1.5 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    elif changed == "tokenizer":
        path = parts / "tokenizer" / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "extra": 1}))
    elif changed == "captions":
        path = tmp_path / "set" / "dataset.json"
        path.write_text(path.read_text().replace("clip 1", "a longer caption of clip 1"))
    after = read(num_frames=3) if changed == "frames" else read()
    assert len(files(tmp_path)) == 2
    if changed == "vae":
        assert (after.latents([0]) - 1.5 * before.latents([0])).abs().max() < 5e-3
    if changed == "captions":
        assert after.text([1], [False])[0].shape[1] > before.text([1], [False])[0].shape[1]
    if changed == "frames":
        assert after.shapes[-1] == ("video", 4, 1, 2, 2)


def test_text_is_padded_masked_and_dropped(read: Callable[..., EncodedSet], parts: Path) -> None:
    from ea_runtime.text import TextEncoder

    coded = read()
    encoder = TextEncoder.from_pretrained(parts)
    captions = ["clip 0", "", "clip 3"]
    text, mask = coded.text([0, 1, 3], [False, True, False])
    assert text.dtype == torch.float32
    assert mask.dtype == torch.int64
    assert text.shape == (3, int(mask.sum(1).max()), coded.width)
    expected = encoder.encode(captions)
    for row in range(3):
        wanted = expected.embeds[row][expected.mask[row].bool()]
        assert int(mask[row].sum()) == len(wanted)
        assert torch.allclose(text[row, : len(wanted)], wanted, atol=5e-3)
        assert not text[row, len(wanted) :].any()
    assert int(mask[1].sum()) == 1  # the empty prompt is </s> alone
    # dropped samples are the empty prompt, whichever they are
    assert torch.equal(coded.text([4], [True])[0], coded.text([0], [True])[0])


@pytest.mark.parametrize("damage", ["cut", "empty", "older kind"])
def test_a_damaged_file_is_made_again(damage: str, read: Callable[..., EncodedSet], tmp_path: Path) -> None:
    before = read().latents([0, 1, 2])
    path = tmp_path / "set" / "cache" / files(tmp_path)[0]
    if damage == "older kind":
        save_file({"moments/image": torch.zeros(1)}, path)
    else:
        path.write_bytes(path.read_bytes()[:-10] if damage == "cut" else b"")
    assert torch.equal(read().latents([0, 1, 2]), before)


def test_a_failure_leaves_no_file_and_the_threads(read: Callable[..., EncodedSet], tmp_path: Path) -> None:
    (tmp_path / "set" / "1.png").write_bytes(b"noise")
    torch.set_num_threads(1)
    with pytest.raises(UserError, match=r"1.png of .* cannot be decoded"):
        read()
    assert torch.get_num_threads() == 1
    assert not (tmp_path / "set" / "cache").exists()


def test_too_few_frames_and_missing_parts(
    read: Callable[..., EncodedSet], parts: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"`data.num_frames` is 18, but 3.gif has 9 frames; lower it"):
        read(num_frames=18)
    next((parts / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"vae of model folder .* has no weights"):
        read()
    (tmp_path / "set" / "dataset.json").unlink()
    with pytest.raises(UserError, match="make one with `ea data draw`"):
        read()
