"""The metric `vbench`: dimensions of VBench (Huang et al. 2024), run by the user's own installation of its package.

It was written against VBench 0.1.5's interface and tried with a module of that shape; it has not run with the package
itself, which needs its own weights in its own cache. Hugging Face's downloads are off while it runs.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ea_runtime.errors import UserError, nearest
from ea_runtime.evaluation.clip import Clip
from ea_runtime.plugins.discovery import one_line

#: those that VBench measures of videos that were not made from its own prompts
DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "temporal_style",
    "overall_consistency",
    "human_action",
)
#: endings that VBench takes
_ENDINGS = (".mp4", ".gif")


class VBenchOptions(BaseModel):
    """dimensions: of VBench, by its own names. device: "cpu", "cuda"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dimensions: tuple[str, ...] = Field(("motion_smoothness", "imaging_quality"), min_length=1)
    device: str = "cuda"

    @field_validator("dimensions")
    @classmethod
    def _known(cls, dimensions: tuple[str, ...]) -> tuple[str, ...]:
        for name in dimensions:
            if name not in DIMENSIONS:
                known = nearest(name, DIMENSIONS) or f"; there are: {', '.join(DIMENSIONS)}"
                raise ValueError(f"VBench measures no {name!r} of videos of any prompt{known}")
        return dimensions


class VBench:
    """One value for each dimension, as VBench gives it for a video."""

    def __init__(self, options: VBenchOptions) -> None:
        self.options = options
        self._found: dict[Path, dict[str, float]] = {}

    def missing(self) -> list[str]:
        """A line if the package is not installed."""
        if find_spec("vbench") is not None:
            return []
        return [
            "vbench: the package 'vbench' is not installed here; install it with its weights, see docs/eval.md"
        ]

    def prepare(self, paths: Sequence[Path], prompts: Sequence[str | None]) -> None:
        """Runs VBench over all videos. Raises UserError with its reason if it fails."""
        usable = [
            (path, prompt) for path, prompt in zip(paths, prompts, strict=True) if path.suffix in _ENDINGS
        ]
        if not usable:
            return
        import torch

        with tempfile.TemporaryDirectory(prefix="ea-vbench-") as held:
            # links under numbers: VBench reads every file of a folder, and prompts from names
            folder = Path(held, "videos")
            folder.mkdir()
            names: dict[str, Path] = {}
            try:
                for number, (path, _) in enumerate(usable):
                    name = f"{number:06d}{path.suffix}"
                    (folder / name).symlink_to(path.resolve())
                    names[name] = path
                asked = {name: prompt or "" for name, (_, prompt) in zip(names, usable, strict=True)}
                with mock.patch.dict(os.environ, HF_HUB_OFFLINE="1"), redirect_stdout(None):
                    bench: Any = import_module("vbench").VBench(
                        torch.device(self.options.device), "", str(Path(held, "out"))
                    )
                    bench.evaluate(
                        videos_path=str(folder),
                        name="ea",
                        prompt_list=asked,
                        dimension_list=list(self.options.dimensions),
                        local=True,
                        mode="custom_input",
                    )
                found = json.loads(Path(held, "out", "ea_eval_results.json").read_text(encoding="utf-8"))
            # another program's code: it raises what it likes
            except Exception as error:
                raise UserError(f"vbench: it failed: {one_line(error)}") from error
        for dimension, (_, rows) in found.items():
            for row in rows:
                path = names[Path(row["video_path"]).name]
                self._found.setdefault(path, {})[dimension] = float(row["video_results"])

    def __call__(self, clip: Clip) -> dict[str, float]:
        """The values that VBench gave. Raises UserError for a kind of file that it does not take."""
        if clip.path not in self._found:
            raise UserError(f"vbench: it judges {' and '.join(_ENDINGS)} only, got {clip.path.name!r}")
        return self._found[clip.path]
