"""A drawn set through `tiny`'s VAE and text encoder: latents and text from the cache equal those encoded on the fly."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from ea_data.draw.write import DrawConfig, write_set
from ea_dit.training.options import DitOptions
from ea_dit.training.recipe import DitRecipe
from ea_runtime.models.layout import resolve_folder
from ea_runtime.training.data.dataset import Bucket
from ea_runtime.training.latents.source import EncodedOptions, EncodedSource
from ea_runtime.training.recipe import Context

TRANSFORMER = resolve_folder("tiny") / "transformer"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EncodedOptions:
    """Three clips of 27 frames and two pictures, 64x64."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    write_set(folder, DrawConfig(num_clips=3, num_pictures=2, num_frames=27, seed=1))
    return EncodedOptions(path=str(folder), parts="tiny", num_frames=18, decode="inline")


@pytest.fixture(scope="module")
def sources(options: EncodedOptions, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EncodedSource]:
    context = Context(0, "cpu", tmp_path_factory.mktemp("run"), lambda line: None)
    return {
        cache: EncodedSource(options.model_copy(update={"cache": cache}), context, single_frames=True)
        for cache in ("make", "off")
    }


def seen(source: EncodedSource, indices: list[int], seed: int, num_frames: int | None) -> list[torch.Tensor]:
    batch = source.fetch(indices, seed, source.buckets()[indices[0]], num_frames)
    latents = source.encode(batch, torch.Generator().manual_seed(seed), "cpu")
    return [latents, *source.text(batch, [False] * (len(indices) - 1) + [True], "cpu")]


CROPS = [([0, 1, 2], None, 6), ([2, 0], 9, 3), ([1, 2], 1, 1), ([3, 4], None, 1)]


@pytest.mark.parametrize(("indices", "num_frames", "latent_frames"), CROPS)
def test_the_cache_changes_nothing(
    indices: list[int], num_frames: int | None, latent_frames: int, sources: dict[str, EncodedSource]
) -> None:
    for seed in range(3):
        both = [seen(sources[cache], indices, seed, num_frames) for cache in ("make", "off")]
        assert both[0][0].shape == (len(indices), 4, latent_frames, 8, 8)
        for one, other in zip(*both, strict=True):
            assert one.shape == other.shape
            # only rounding differs: the VAE sums in another order in batches of another size
            assert torch.allclose(one, other, rtol=1e-5, atol=5e-6)


def test_the_losses_are_those_of_training_without_it(options: EncodedOptions, tmp_path: Path) -> None:
    """Losses of the denoiser's own recipe, on whole clips and crops, with noise and timesteps of the same generator."""
    data = {**options.model_dump(exclude_unset=True), "drop_text": 0.5, "random_frame_crop": True}
    losses = []
    for cache in ("use", "off"):
        table = {"stage": "motion", "data": {**data, "cache": cache}, "init": {"folder": str(TRANSFORMER)}}
        recipe = DitRecipe(DitOptions.model_validate(table), Context(0, "cpu", tmp_path, lambda line: None))
        totals = []
        for seed, indices in itertools.product(range(12), ([0, 1], [3, 4])):
            batch, generator = recipe.fetch(indices, seed, 0), torch.Generator().manual_seed(seed)
            totals.append(recipe.loss(batch, generator, 0, "model").total.item())
        losses.append(totals)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(set(losses[0])) == len(losses[0])


def test_a_window_that_is_not_made_of_chunks_would_be_found_out(sources: dict[str, EncodedSource]) -> None:
    """The broken twin: windows that start one frame later have other latents."""
    source = sources["off"]
    bucket = Bucket("video", 9, 64, 64)
    frames = [torch.from_numpy(np.stack([source.set.read(0, start, bucket)])) for start in (9, 10)]
    first, second = (source.coder.moments(part) for part in frames)
    assert (first - second).abs().max() > 1e-2


def test_the_position_of_a_run_does_not_matter(
    sources: dict[str, EncodedSource], options: EncodedOptions, tmp_path: Path
) -> None:
    """A source opened again, as in a resumed run, gives the same batches, bit-exact."""
    context = Context(0, "cpu", tmp_path, lambda line: None)
    again = EncodedSource(options.model_copy(update={"cache": "use"}), context, single_frames=True)
    for one, other in zip(
        seen(sources["make"], [2, 1], 11, None), seen(again, [2, 1], 11, None), strict=True
    ):
        assert torch.equal(one, other)
