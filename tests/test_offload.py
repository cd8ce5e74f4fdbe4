"""Offloading and narrow storage of the bundled model: the same video, or nearly, with fewer weights in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ea_runtime.cli.main import run
from ea_runtime.errors import UserError
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.models.fp8 import store_in_fp8
from ea_runtime.models.layout import bundled_folder
from ea_runtime.models.waiting import waiting_groups
from ea_runtime.planning.parts import read_parts

SMALL = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 3, "seed": 1}
PROMPT = "a red circle moves right"
#: dB of all parts in fp8, over the frames of a small video; measured: 39
LEAST_PSNR = 33.0


def load(**options: str) -> VideoPipeline:
    return VideoPipeline.from_pretrained("tiny", device="cpu", dtype="float32", **options)


@pytest.fixture(scope="module")
def resident() -> np.ndarray:
    frames = load()(PROMPT, **SMALL).frames
    assert frames is not None
    return frames


def test_blocks_that_wait_in_their_files_are_exact(resident: np.ndarray) -> None:
    pipe = load(offload="group")
    networks = (pipe.text.model, pipe.denoiser, pipe.vae)
    for network in networks:
        waiting = sum(group.nbytes for group in waiting_groups(network))
        assert waiting > 0.3 * sum(p.nbytes for p in network.parameters())
    for _ in range(2):
        assert np.array_equal(pipe(PROMPT, **SMALL).frames, resident)
        # the twin: hooks that did nothing would leave numbers there
        assert all(
            slot.tensor.isnan().all() for one in networks for g in waiting_groups(one) for slot in g.slots
        )


def test_a_plan_counts_what_waits() -> None:
    pipe = load(offload="group")
    for name, part in read_parts(bundled_folder("tiny")).items():
        network = pipe.text.model if name == "text" else getattr(pipe, name)
        groups = [group.nbytes // 4 for group in waiting_groups(network)]
        assert (part.waiting, part.group, part.groups) == (sum(groups), max(groups), len(groups))


def test_memory_that_is_short_is_planned_and_bad_modes_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def planned(*options: str) -> tuple[int, str]:
        words = ["plan", "--device", "cpu", "--num-frames", "9", *options]
        code = run(words)
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = planned("--offload", "sequential")
    assert (code, "'group' works there" in said) == (2, True)
    assert "one block at a time" in planned("--offload", "group")[1]


def test_reads_without_the_hooks_give_no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr("ea_dit.network.prepared.weights_of", lambda module: nullcontext())
    with pytest.raises(UserError, match="NaN"):
        load(offload="group")(PROMPT, **SMALL)


def test_a_pipeline_that_waits_is_neither_moved_nor_saved(tmp_path: Path) -> None:
    pipe = load(offload="group")
    with pytest.raises(UserError, match="cannot be moved"):
        pipe.to("cpu")
    with pytest.raises(UserError, match="cannot be combined"):
        pipe.compile()
    with pytest.raises(UserError, match="its state dict holds none"):
        pipe.denoiser.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'group' works there"):
        load(offload="model")


def test_files_that_change_meanwhile_are_noticed(tmp_path: Path) -> None:
    import os
    import shutil

    folder = Path(shutil.copytree(bundled_folder("tiny"), tmp_path / "model"))
    pipe = VideoPipeline.from_pretrained(folder, device="cpu", dtype="float32", offload="group")
    os.utime(folder / "transformer" / "diffusion_pytorch_model.safetensors", (1, 1))
    with pytest.raises(UserError, match="were changed while they were in use"):
        pipe(PROMPT, **SMALL)


def test_narrow_storage_is_near(resident: np.ndarray) -> None:
    pipe = load()
    saved = [
        store_in_fp8(part, name) for name, part in (("t", pipe.text), ("d", pipe.denoiser), ("v", pipe.vae))
    ]
    assert min(saved) > 0
    error = float(((pipe(PROMPT, **SMALL).frames.astype(float) - resident) ** 2).mean())
    assert error > 0  # the twin: fp8 that did nothing is exact
    assert 10 * np.log10(255**2 / error) > LEAST_PSNR


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["model", "group", "sequential"])
def test_offloading_on_a_gpu_is_exact(mode: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found, peaks = [], []
    for offload in ("none", mode):
        torch.cuda.reset_peak_memory_stats()
        pipe = VideoPipeline.from_pretrained("tiny", device="cuda", dtype="float32", offload=offload)
        found.append(pipe(PROMPT, **SMALL).frames)
        peaks.append(torch.cuda.max_memory_allocated())
        del pipe
        torch.cuda.empty_cache()
    assert np.array_equal(*found)
    assert peaks[1] < peaks[0]
