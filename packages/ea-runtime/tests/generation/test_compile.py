"""VideoPipeline.compile: block by block, nothing renamed; with EA_FULL=1 `tiny` is really compiled."""

from __future__ import annotations

import os

import numpy as np
import pytest

from ea_runtime.errors import UserError
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae


class Compilable(FakeDenoiser):
    _repeated_blocks = ("Block",)

    def compile_repeated_blocks(self, **options) -> None:
        self.options = options


def test_the_blocks_of_the_parts_that_name_them_are_compiled():
    pipe = VideoPipeline(FakeVae(), Compilable(), FakeTextEncoder())
    assert pipe.compile() is pipe
    assert pipe.denoiser.options == {"dynamic": False}
    assert not pipe.has_cuda_graphs


def test_what_cannot_be_compiled_is_said():
    pipe = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder())
    with pytest.raises(UserError, match="needs a denoiser that names its blocks, and FakeDenoiser does not"):
        pipe.compile()
    with pytest.raises(UserError, match="`cuda_graphs` needs a CUDA device, got 'cpu'"):
        pipe.compile(cuda_graphs=True)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("EA_FULL"), reason="compiling takes minutes; EA_FULL=1 runs it")
def test_compiled_frames_are_those_of_a_plain_run():
    settings = {"prompt": "a red circle moves right", "seed": 3, "num_inference_steps": 3}
    plain = VideoPipeline.from_pretrained("tiny", device="cpu")
    wanted = plain(**settings)
    pipe = VideoPipeline.from_pretrained("tiny", device="cpu").compile()
    found = pipe(**settings)
    assert pipe.denoiser.state_dict().keys() == plain.denoiser.state_dict().keys()
    assert pipe.vae.state_dict().keys() == plain.vae.state_dict().keys()
    assert float((found.latents - wanted.latents).norm() / wanted.latents.norm()) < 1e-4
    assert np.abs(found.frames.astype(int) - wanted.frames).mean() < 0.1
    assert np.array_equal(pipe(**settings).frames, found.frames)
