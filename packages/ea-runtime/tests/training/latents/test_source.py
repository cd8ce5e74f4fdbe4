"""The set as the denoiser sees it: the same from the cache and encoded on the fly."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ea_runtime.errors import UserError
from ea_runtime.training.latents import fill
from ea_runtime.training.latents.source import EncodedOptions, EncodedSource, make_cache
from ea_runtime.training.recipe import Batch, Context

MakeSet = Callable[..., Path]
Open = Callable[..., EncodedSource]


@pytest.fixture
def lines() -> list[str]:
    """Lines that were reported."""
    return []


@pytest.fixture
def context(tmp_path: Path, lines: list[str]) -> Context:
    return Context(seed=0, device="cpu", out=tmp_path / "run", say=lines.append)


@pytest.fixture
def options(parts: Path, make_set: MakeSet) -> EncodedOptions:
    """A set of 3 pictures and 2 clips of 27 frames, cut to 18."""
    return EncodedOptions(path=str(make_set()), parts=str(parts), format="arrays", num_frames=18)


@pytest.fixture
def source(options: EncodedOptions, context: Context) -> Open:
    """source(cache="make", views=..., single_frames=..., other options): the set as the denoiser sees it."""

    def make(views: Any = ((None, None),), single_frames: bool = False, **changes: Any) -> EncodedSource:
        return EncodedSource(options.model_copy(update=changes), context, views, single_frames)

    return make


def seen(
    source: EncodedSource, indices: list[int], num_frames: int | None = None, seed: int = 5
) -> list[torch.Tensor]:
    """Latents, text and mask of a batch, with one sample's caption dropped."""
    bucket = source.buckets()[indices[0]]
    batch = source.fetch(indices, seed, bucket, num_frames)
    assert batch.indices == indices
    latents = source.encode(batch, torch.Generator().manual_seed(seed), "cpu")
    return [latents, *source.text(batch, [i == indices[0] for i in indices], "cpu")]


def coded(small: ModuleType, work: Callable[[], Any]) -> int:
    """Number of windows that the VAE encodes during `work()`."""
    before = small.SmallVae.coded
    work()
    return small.SmallVae.coded - before


# -- the same result from the cache


def test_the_cache_gives_what_coding_gives(source: Open) -> None:
    """Pictures, whole windows, shorter ones and single frames, for several draws of their starts."""
    cached, direct = source(single_frames=True), source(cache="off")
    for indices, num_frames in (([2, 0], None), ([3, 4], None), ([4, 3], 9), ([3, 4], 1)):
        for seed in range(4):
            both = zip(
                seen(cached, indices, num_frames, seed), seen(direct, indices, num_frames, seed), strict=True
            )
            for one, other in both:
                assert one.shape == other.shape
                assert one.dtype == other.dtype
                assert torch.allclose(one, other, atol=1e-6)


def test_shapes_and_values(source: Open, small: ModuleType, parts: Path, tmp_path: Path) -> None:
    cached = source(single_frames=True)
    assert (cached.channels, cached.width, cached.scale, cached.chunk, cached.spatial_ratio) == (
        4,
        16,
        0.5,
        9,
        8,
    )
    assert len(cached) == 5
    assert cached.num_latents(18) == 6
    latents, text, mask = seen(cached, [3, 4])
    assert latents.shape == (2, 4, 6, 2, 2)
    assert latents.dtype == torch.float32
    assert text.shape[:2] == mask.shape
    assert mask.dtype == torch.int64
    # the posterior's deviation is a fifth of the difference between windows: they are the right ones
    vae = small.SmallVae()
    vae.gain.data = load_file(parts / "vae" / "diffusion_pytorch_model.safetensors")["gain"]
    frames = torch.from_numpy(np.load(tmp_path / "set" / "3.npy")).movedim(-1, 0)[None] / 127.5 - 1
    batch = cached.fetch([3], 5, cached.buckets()[3], 9)
    means = [vae.encode(frames[:, :, s : s + 9].float()).latent_dist.parameters for s in (0, 9, 18)]
    assert sum(torch.allclose(batch.tensors["moments"], mean, atol=1e-6) for mean in means) == 1
    # a frame encoded by itself differs from the first frame of a chunk
    single = cached.fetch([3], 5, cached.buckets()[3], 1).tensors["moments"]
    assert not any(torch.allclose(single, mean[:, :, :1], atol=1e-2) for mean in means)


def test_the_noise_is_the_generator_s(source: Open) -> None:
    cached = source()
    batch = cached.fetch([3, 4], 1, cached.buckets()[3])
    draw = [cached.encode(batch, torch.Generator().manual_seed(seed), "cpu") for seed in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert not torch.equal(draw[0][0], draw[0][1])


def test_fetch_is_a_function_of_its_arguments(source: Open) -> None:
    """In a worker too, which gets a copy."""
    for cache in ("make", "off"):
        first = source(cache=cache)
        bucket = first.buckets()[3]
        batch = first.fetch([3, 4], 7, bucket)
        for other in (first, source(cache=cache), pickle.loads(pickle.dumps(first))):
            again = other.fetch([3, 4], 7, bucket)
            for name, value in batch.tensors.items():
                assert (
                    again.tensors[name] == value
                    if isinstance(value, list)
                    else torch.equal(again.tensors[name], value)
                )
        draws = {
            first.fetch([3], seed, bucket).tensors[name].sum().item()
            for seed in range(20)
            for name in ("moments", "frames")
            if name in batch.tensors
        }
        assert len(draws) == 2  # windows start at frame 0 and 9


def test_text_is_padded_masked_and_dropped(source: Open, parts: Path) -> None:
    from ea_runtime.text.encoder import TextEncoder

    expected = TextEncoder.from_pretrained(parts).encode(["clip 0", "", "clip 2"])
    for cache in ("make", "off"):
        it = source(cache=cache)
        batch = it.fetch([0, 1, 2], 0, it.buckets()[0])
        text, mask = it.text(batch, [False, True, False], "cpu")
        assert text.shape == (3, int(mask.sum(1).max()), it.width)
        for row in range(3):
            wanted = expected.embeds[row][expected.mask[row].bool()]
            assert int(mask[row].sum()) == len(wanted)
            assert torch.allclose(text[row, : len(wanted)], wanted, atol=1e-6)
            assert not text[row, len(wanted) :].any()
        assert it.text(batch, [True] * 3, "cpu", torch.bfloat16)[0].shape == (3, 1, it.width)  # only </s>


def test_the_scale_is_the_one_that_sampling_uses(source: Open, parts: Path) -> None:
    """V2's class default 0.1825 was never used: the pipeline replaces it with 0.18215, and so must training."""
    path = parts / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scaling_factor": 0.1825}))
    assert source(cache="off").scale == 0.18215


# -- what is encoded, and when


def test_what_is_there_is_not_coded_again(source: Open, small: ModuleType, lines: list[str]) -> None:
    assert coded(small, source) == 3 + 2 * 3  # pictures, and all chunks that a clip's window may contain
    assert lines[0].startswith("latents: 9 encoded, 0 bad, latents-")
    assert lines[1].startswith("captions: 6 encoded, text-")
    lines.clear()
    assert coded(small, source) == 0
    assert coded(small, lambda: source(num_frames=9)) == 0
    assert coded(small, lambda: source(kinds="videos")) == 0
    assert lines == []
    assert coded(small, lambda: source(single_frames=True)) == 2 * 3
    assert coded(small, lambda: source(views=[(8, 9), (16, 18)])) == 9  # the smaller size is new


@pytest.mark.parametrize(
    ("change", "latents", "captions"),
    [
        ("file", 3, 0),
        ("caption", 0, 1),
        ("name", 0, 0),
        ("vae", 9, 0),
        ("text encoder", 0, 6),
        ("tokenizer", 0, 6),
    ],
)
def test_only_what_changed_is_coded_again(
    change: str,
    latents: int,
    captions: int,
    source: Open,
    small: ModuleType,
    parts: Path,
    tmp_path: Path,
    lines: list[str],
) -> None:
    before = seen(source(), [3, 4])
    folder = tmp_path / "set"
    rows = (folder / "dataset.json").read_text()
    if change == "file":
        frames = np.load(folder / "3.npy")
        np.save(folder / "3.npy", 255 - frames)
    elif change == "caption":
        (folder / "dataset.json").write_text(rows.replace("clip 3", "a longer caption of clip 3"))
    elif change == "name":
        (folder / "3.npy").rename(folder / "other.npy")
        (folder / "dataset.json").write_text(rows.replace("3.npy", "other.npy"))
    elif change == "tokenizer":
        path = parts / "tokenizer" / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "extra": 1}))
    else:
        path = next((parts / ("vae" if change == "vae" else "text_encoder")).glob("*.safetensors"))
        save_file({k: v * 1.5 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    lines.clear()
    if change != "name":  # it is noticed, and reported before any training
        with pytest.raises(
            UserError, match=r"the cache .* lacks .*; run `ea train cache CONFIG`, or set data.cache"
        ):
            source(cache="use")
    assert coded(small, source) == latents
    assert [
        line for line in lines if f": {captions:,} encoded" in line and "captions" in line
    ] or not captions
    after = seen(source(cache="use"), [3, 4])
    assert torch.equal(after[0], before[0]) == (not latents)
    for one, other in zip(after, seen(source(cache="off"), [3, 4]), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_run_that_is_killed_goes_on(
    source: Open, small: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Latents that reached the disk are not made again, and nothing half-written passes as whole."""
    monkeypatch.setattr(fill, "PIXELS", 9 * 16 * 16)  # a window at a time
    first = fill.Writer.add
    count = 0

    def add(self: Any, key: Any, entry: torch.Tensor) -> None:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        first(self, key, entry)
        self.flush()

    monkeypatch.setattr(fill.Writer, "add", add)
    with pytest.raises(KeyboardInterrupt):
        source()
    folder = next((tmp_path / "set" / "cache").glob("latents-*"))
    (folder / ".shard-9.safetensors.0a1b2c3d.part").write_bytes(b"torn")
    monkeypatch.setattr(fill.Writer, "add", first)
    assert coded(small, source) == 9 - 5
    assert not list(folder.glob(".*"))
    for one, other in zip(seen(source(), [3, 4]), seen(source(cache="off"), [3, 4]), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("damage", ["cut", "empty", "no index", "torn index"])
def test_damage_is_found_and_made_good(damage: str, source: Open, tmp_path: Path) -> None:
    before = seen(source(), [3, 4])
    folder = next((tmp_path / "set" / "cache").glob("latents-*"))
    shard, index = next(folder.glob("shard-*")), folder / "index.safetensors"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "no index":
        index.unlink()
    else:
        index.write_bytes(index.read_bytes()[:100])
    for one, other in zip(seen(source(), [3, 4]), before, strict=True):
        assert torch.equal(one, other)


# -- bad files


def test_bad_files_are_counted_and_not_replaced(
    source: Open, small: ModuleType, tmp_path: Path, lines: list[str]
) -> None:
    folder = tmp_path / "set"
    (folder / "1.npy").write_bytes(b"noise")
    (folder / "4.npy").unlink()
    for cache in ("make", "use", "off"):
        it = source(cache=cache)
        for indices, bad in (([0, 1, 2], [1]), ([3, 4], [4]), ([4], [4])):
            batch: Batch = it.fetch(indices, 0, it.buckets()[indices[0]])
            assert batch.indices == [i for i in indices if i not in bad]
            assert [(index, path) for index, path, _ in batch.bad] == [(i, f"{i}.npy") for i in bad]
            assert len(batch) == len(indices) - 1
    assert lines[0].startswith("latents: 5 encoded, 1 bad")
    # it is not tried again at each start, only when it changes
    assert coded(small, source) == 0
    assert len([line for line in lines if "bad" in line]) == 1
    np.save(folder / "1.npy", np.zeros((1, 16, 16, 3), dtype=np.uint8))
    assert coded(small, source) == 1


def test_a_later_bad_file_leaves_the_earlier_one_known(
    source: Open, tmp_path: Path, lines: list[str]
) -> None:
    for name in ("1.npy", "0.npy"):
        (tmp_path / "set" / name).write_bytes(b"noise of " + name.encode())
        lines.clear()
        source()
        assert len([line for line in lines if line.startswith("latents: ") and ", 1 bad" in line]) == 1
    lines.clear()
    batch = source(cache="use").fetch([0, 1], 0, source().buckets()[0])
    assert [(index, reason != "it is not in the cache") for index, _, reason in batch.bad] == [
        (0, True),
        (1, True),
    ]
    assert not [line for line in lines if line.startswith("latents: ")]


def test_make_cache_tells_what_it_found(
    options: EncodedOptions, context: Context, small: ModuleType, tmp_path: Path, lines: list[str]
) -> None:
    (tmp_path / "set" / "1.npy").write_bytes(b"noise")
    assert coded(small, lambda: make_cache(options, context)) == 8
    assert lines[-1].startswith("8 latents and 6 captions in ")
    assert lines[-1].endswith("; 1 cannot be read")
    assert coded(small, lambda: make_cache(options, context)) == 0
    assert [line for line in lines if line.startswith("latents: 0 encoded, 1 bad")], (
        "what is bad is tried again"
    )
    make_cache(options.model_copy(update={"coding": "bf16", "kinds": "videos"}), context)
    assert "; of other models, free to delete: latents-" in lines[-1]
    make_cache(options.model_copy(update={"kinds": "videos"}), context)
    assert "; 2 other latents are not needed by this config" in lines[-1]


def test_nan_is_no_latent(source: Open, parts: Path) -> None:
    path = parts / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({"gain": torch.full((4,), torch.nan)}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the VAE makes NaN or infinity of '0.npy'; try `data.coding` fp32"):
        source()


# -- options


def test_empty_captions_are_told(source: Open, options: EncodedOptions, lines: list[str]) -> None:
    source(cache="off")
    assert lines == []
    path = Path(options.path) / "dataset.json"
    rows = json.loads(path.read_text())
    rows[0]["text"], rows[3]["text"] = "", " \n"
    path.write_text(json.dumps(rows))
    source(cache="off")
    assert lines == ["2 of 5 captions are empty: those samples train the empty prompt"]


def test_wrong_options(source: Open, parts: Path, context: Context, options: EncodedOptions) -> None:
    with pytest.raises(
        UserError, match=r"`data.num_frames` must be 1 or a multiple of 9, got 20; use 18 or 27"
    ):
        source(num_frames=20)
    with pytest.raises(UserError, match=r"got 5; use 1 or 9"):
        source(views=[(None, 5)])
    with pytest.raises(UserError, match=r"`data.crop` must be 'centre' with a cache"):
        source(crop="random")
    with pytest.raises(UserError, match=r"`data.crop` must be 'centre' with a cache"):
        make_cache(options.model_copy(update={"crop": "random"}), context)
    with pytest.raises(UserError, match=r"`model` must be|no model"):
        source(parts=str(parts / "nowhere"))
    next((parts / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"vae of model folder .* has no weights"):
        source()


def test_a_dry_run_codes_and_writes_nothing(
    options: EncodedOptions, context: Context, small: ModuleType, tmp_path: Path
) -> None:
    dry = Context(0, "meta", tmp_path / "run", context.say, dry_run=True)
    with torch.device("meta"):
        assert coded(small, lambda: EncodedSource(options, dry).buckets()) == 0
    assert not (tmp_path / "set" / "cache").exists()


def test_another_folder_for_the_cache(source: Open, tmp_path: Path) -> None:
    source(cache_folder=str(tmp_path / "elsewhere"))
    assert len(list((tmp_path / "elsewhere").glob("*-*"))) == 2
    assert not list((tmp_path / "set" / "cache").glob("latents-*"))
