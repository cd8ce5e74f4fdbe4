"""Motion modules by the names of their tensors, and their fit from one model to another.

A motion file holds the tensors of the motion modules under the names that they have in a whole checkpoint:
`transformer_blocks.3.attn_temporal.temporal_transformer.proj_in.weight`. EasyAnimate V1's separate motion file has
the same names, so it needs no separate table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_NAME = re.compile(r"transformer_blocks\.(\d+)\.attn_temporal\.")
_TABLE = ".pos_encoder.pe"  # a table that every model computes; its length is a setting
Shape = tuple[int, ...]


def motion_names(names: Iterable[str]) -> list[str]:
    """The names that belong to motion modules, in their order."""
    return [name for name in names if _NAME.match(name)]


@dataclass(frozen=True, slots=True)
class MotionReport:
    """The fit of a motion file's tensors to the places of a model.

    matched: taken over. kept: position tables of the model that stay, since the file has none or of another length.
    missing: places that the file does not fill. mismatched: (name, the model's shape, the file's). unused: names of the
    file that are no motion module.
    """

    matched: tuple[str, ...]
    kept: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]
    unused: tuple[str, ...]
    num_blocks: int

    @property
    def line(self) -> str:
        """For the user."""
        parts = [f"{len(self.matched)} tensors of {self.num_blocks} blocks matched"]
        parts += [
            f"{len(found)} {what}"
            for found, what in (
                (self.kept, "position tables stay the model's"),
                (self.missing, "missing"),
                (self.mismatched, "of another shape"),
                (self.unused, "ignored, no motion modules"),
            )
            if found
        ]
        return ", ".join(parts)


def match_motion(motion: Mapping[str, Shape], backbone: Mapping[str, Shape], where: str) -> MotionReport:
    """Compare a motion file's tensors with a model's, by name and shape.

    where: the file, for errors. Raises ValueError, one line: no motion modules on one side, another depth.
    """
    ours, theirs = motion_names(backbone), motion_names(motion)
    if not ours:
        raise ValueError("the model has no motion modules; make it a 3-D model by `from_pretrained_2d` first")
    if not theirs:
        raise ValueError(
            f"{where} holds no motion modules, first tensor is {next(iter(motion), 'none')!r}; make such a file "
            "with `ea models extract-motion`"
        )
    depth, wanted = _num_blocks(theirs), _num_blocks(ours)
    if depth != wanted:
        raise ValueError(
            f"{where} has motion modules of {depth} blocks, the model has {wanted}; take those of a model of "
            f"{wanted} blocks"
        )
    strangers = [name for name in theirs if name not in backbone]
    if strangers:
        raise ValueError(
            f"{where} has {len(strangers)} motion tensors that the model has no place for, first {strangers[0]!r}; "
            "its modules are built otherwise (see motion_module_kwargs)"
        )
    matched, kept, missing, mismatched = [], [], [], []
    for name in ours:
        if name in motion and motion[name] == backbone[name]:
            matched.append(name)
        elif name.endswith(_TABLE):
            kept.append(name)
        elif name not in motion:
            missing.append(name)
        else:
            mismatched.append((name, backbone[name], motion[name]))
    unused = [name for name in motion if name not in set(theirs)]
    return MotionReport(tuple(matched), tuple(kept), tuple(missing), tuple(mismatched), tuple(unused), depth)


def require_fit(report: MotionReport, where: str) -> None:
    """Raise ValueError, one line, unless every place is filled."""
    if report.mismatched:
        name, wanted, got = report.mismatched[0]
        raise ValueError(
            f"{where} does not fit: {report.line}; first {name!r} must have shape {wanted}, got {got}"
        )
    if report.missing:
        raise ValueError(f"{where} is not whole: {report.line}; first missing is {report.missing[0]!r}")


def _num_blocks(names: list[str]) -> int:
    return 1 + max(int(match[1]) for name in names if (match := _NAME.match(name)))
