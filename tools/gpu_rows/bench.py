"""The networks of the rows, built once in a process, and how two ways of computing are compared.

Networks are V2's published ones with random weights: bf16 on a GPU; small ones in fp32 on a CPU.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu_rows.rows import LARGE, MIDDLE, SMALL

#: height and width in pixels, frames
SIZES = {LARGE: (768, 768, 144), MIDDLE: (512, 512, 144), SMALL: (384, 384, 72)}
TOY_SIZES = {LARGE: (32, 32, 18), MIDDLE: (16, 16, 18), SMALL: (16, 16, 9)}
#: FLOPs of a pass of the denoiser without guidance, and of a decoded chunk as the reference computes it (counted by
#: `count` below on tensors without values)
PUBLISHED = {
    ("step", LARGE): 335.7e12,
    ("step", MIDDLE): 141.1e12,
    ("step", SMALL): 38.8e12,
    ("chunk", LARGE): 85.0e12,
    ("chunk", MIDDLE): 37.4e12,
    ("chunk", SMALL): 20.9e12,
}
TOY_DIT: dict[str, Any] = {
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "cross_attention_dim": 64,
    "caption_channels": 32,
}
VAE: dict[str, Any] = {"ch": 128, "ch_mult": (1, 2, 4, 4), "layers_per_block": 2, "scaling_factor": 0.18215}
TOY_VAE: dict[str, Any] = VAE | {
    "ch": 8,
    "ch_mult": (1, 1, 2, 2),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


class NotHere(Exception):
    """A reason for which a row cannot be measured on this machine, now."""


@dataclass
class Bench:
    """A process that measures. facts: what earlier rows found, which later ones need. work: a folder for files.

    seconds_left: of the lease, when the row began. built: the networks that are there.
    """

    is_cpu: bool
    work: Path
    reference: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    seconds_left: float = 0.0
    built: dict[str, Any] = field(default_factory=dict)
    _compiled: dict[tuple[str, bool], list[Any]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.is_cpu else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.is_cpu else torch.bfloat16

    def size(self, name: str) -> tuple[int, int, int]:
        """Height, width, frames."""
        return (TOY_SIZES if self.is_cpu else SIZES)[name]

    def latent_shape(self, name: str) -> tuple[int, int, int, int, int]:
        height, width, frames = self.size(name)
        return (1, 4, frames // 3, height // 8, width // 8)

    def noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)

    # -- networks ----------------------------------------------------------------------------------

    def dit(self) -> Any:
        if "dit" not in self.built:
            from ea_dit import Transformer3DModel

            self.built["dit"] = self._built(lambda: Transformer3DModel(**(TOY_DIT if self.is_cpu else {})))
        return self.built["dit"]

    def vae(self) -> Any:
        if "vae" not in self.built:
            from ea_vae import AutoencoderKLMagvit

            self.built["vae"] = self._built(lambda: AutoencoderKLMagvit(**(TOY_VAE if self.is_cpu else VAE)))
        return self.built["vae"]

    def _built(self, make: Callable[[], Any]) -> Any:
        """A network made on the device, where drawing weights takes no time, with no parameter left at zero."""
        torch.manual_seed(0)
        with self.device, torch.no_grad():
            network = make()
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.01)
        return network.to(self.device, self.dtype).eval()

    def pipeline(self) -> Any:
        """A VideoPipeline of both, that wants embeddings for prompts."""
        from ea_runtime import VideoPipeline

        return VideoPipeline(self.vae(), self.dit(), None, model="published, random weights")

    def prompts(self, tokens: int = 12) -> dict[str, torch.Tensor]:
        """Embeddings of a prompt of some tokens of 120, and of the empty negative one."""
        text = self.noise(2, 120, self.dit().cfg.text_width)
        mask = torch.zeros(2, 120, dtype=torch.long, device=self.device)
        mask[0, 0], mask[1, :tokens] = 1, 1
        return {
            "prompt_embeds": text[1:],
            "prompt_attention_mask": mask[1:],
            "negative_prompt_embeds": text[:1],
            "negative_prompt_attention_mask": mask[:1],
        }

    def drop(self) -> None:
        """Frees the networks."""
        self.built.clear()
        self._compiled.clear()
        self.free()

    @contextlib.contextmanager
    def compiled(self, part: str, cuda_graphs: bool) -> Iterator[None]:
        """The repeated blocks of a part compiled, for as long as this lasts; what was compiled is kept for later."""
        from torch import _dynamo

        network = self.dit() if part == "dit" else self.vae()
        blocks = [m for m in network.modules() if type(m).__name__ in network._repeated_blocks]
        key = (part, cuda_graphs)
        # every shape of a block counts; beyond the limit torch computes it uncompiled, without an error
        setattr(_dynamo.config, "recompile_limit", 64)  # noqa: B010
        if key not in self._compiled:
            # as `VideoPipeline.compile`; a rehearsal goes through torch's tracer, but waits for no C++ compiler
            graphs = {"mode": "reduce-overhead"} if cuda_graphs else {}
            network.compile_repeated_blocks(
                dynamic=False, **({"backend": "eager"} if self.is_cpu else graphs)
            )
            self._compiled[key] = [block._compiled_call_impl for block in blocks]
        try:
            for block, call in zip(blocks, self._compiled[key], strict=True):
                block._compiled_call_impl = call
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None
            if cuda_graphs:  # they hold memory, which would count in the peaks of later rows
                self._compiled.clear()
                torch.compiler.reset()

    # -- measuring ---------------------------------------------------------------------------------

    def free(self) -> None:
        """Gives memory back and forgets peaks."""
        if not self.is_cpu:
            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        if not self.is_cpu:
            torch.cuda.synchronize()

    def peak(self) -> int | None:
        """Bytes of the allocator's peak since `free`; None on a CPU."""
        return None if self.is_cpu else torch.cuda.max_memory_reserved()

    def compare(self, baseline: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> dict[str, Any]:
        """Medians of both, interleaved after a first call of each. A baseline that fails does not lose ours."""
        found: dict[str, Any] = {}
        results: dict[str, torch.Tensor] = {}
        ways = {"ours": ours, "baseline": baseline}
        for name, way in ways.items():
            self.free()
            started = time.perf_counter()
            try:
                with torch.inference_mode():
                    results[name] = way().float().cpu()
                found[f"{name}_first_s"] = round(time.perf_counter() - started, 3)
                found[f"{name}_peak"] = self.peak()
            except torch.OutOfMemoryError as error:
                if name == "ours":
                    raise
                found["baseline_failed"] = str(error).splitlines()[0][:200]
        times: dict[str, list[float]] = {name: [] for name in results}
        for _ in range(rounds):
            for name in times:
                self.wait()
                started = time.perf_counter()
                with torch.inference_mode():
                    ways[name]()
                self.wait()
                times[name].append(time.perf_counter() - started)
        found |= {f"{name}_s": statistics.median(taken) for name, taken in times.items()}
        if "baseline" in results:
            wanted, got = results["baseline"], results["ours"]
            found["error"] = float((wanted - got).norm() / wanted.norm())
            found["ratio"] = found["baseline_s"] / found["ours_s"]
        return found

    def rated(self, found: Mapping[str, Any], flops: float) -> dict[str, Any]:
        """A comparison with the FLOP/s of both, and their share of the measured matrix rate."""
        more: dict[str, Any] = {"flops": flops}
        for name in ("baseline", "ours"):
            if f"{name}_s" in found:
                more[f"{name}_tflops"] = flops / found[f"{name}_s"] / 1e12
                if "matrix_rate" in self.facts:
                    more[f"{name}_share"] = flops / found[f"{name}_s"] / self.facts["matrix_rate"]
        return {**found, **more}

    def flops(self, kind: str, size: str) -> float:
        """FLOPs of the plain form: a pass of the denoiser ("step") without guidance, or a decoded "chunk"."""
        return count(kind, self.latent_shape(size)) if self.is_cpu else PUBLISHED[kind, size]


def count(kind: str, shape: tuple[int, int, int, int, int], is_toy: bool = True) -> float:
    """FLOPs counted on tensors without values; a multiplication with its addition is 2."""
    from baselines import vae as reference  # pyright: ignore[reportMissingImports]  (benchmarks/)
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        if kind == "step":
            from ea_dit import Transformer3DModel

            model = Transformer3DModel(**(TOY_DIT if is_toy else {})).eval()
            model(torch.empty(shape), torch.empty(1), torch.empty(1, 120, model.cfg.text_width))
        else:
            from ea_vae import AutoencoderKLMagvit

            vae = AutoencoderKLMagvit(**(TOY_VAE if is_toy else VAE)).eval()
            reference.decode(vae, torch.empty(1, 4, 3, *shape[3:]))
    return float(counter.get_total_flops())
