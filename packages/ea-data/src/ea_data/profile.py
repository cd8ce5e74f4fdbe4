"""Profiles: the components to run and their settings, from TOML.

    [source]   pictures, strict_decode, max_pixels           [clips]    crf, fps, size, crop_bars
    [split]    name = "adaptive", and its options            [caption]  name = "folder", and its options
    [[score]]  name = "dis", and its options                 [[filter]] name = "motion", and its options

A profile is one of the names in `profiles/` or your own file. `--set score.dis.fps=8` changes an option of that
component, `--set split.name=whole` replaces a component by another with its defaults. The splitter `auto` becomes the
best one that is installed when a profile is loaded: all that follows, and config.toml, names the one that runs.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ea_data.components import make, missing
from ea_data.media.target import Target, read_rate, read_size
from ea_data.options import Options
from ea_data.records.ledger import fingerprint
from ea_runtime.errors import UserError, nearest
from ea_runtime.files.safe import plain
from ea_runtime.plugins.host import get_host
from ea_runtime.settings import put_setting, read_setting, read_toml, validate

NAMES = ("offline", "paper", "reference-v2")
KINDS = {"split": "splitters", "score": "scorers", "filter": "filters", "caption": "captioners"}
#: Name of a splitter that stands for the first of AUTO_SPLITTERS whose packages are installed.
AUTO = "auto"
AUTO_SPLITTERS = ("transnetv2", "adaptive")


class SourceOptions(Options):
    """pictures: take pictures too. strict_decode: damage that a decoder could conceal is an error. max_pixels: larger
    frames are refused."""

    pictures: bool = False
    strict_decode: bool = False
    max_pixels: int = Field(default=1 << 26, gt=0)


class ClipOptions(Options):
    """crf: x264's quality of the written clips, lower is better. fps: their rate, such as 24 or "30000/1001"; frames
    are repeated or left out. size: their short side, such as 512, or width and height, such as "512x288"; scaled, then
    cropped around the centre. Empty: as in the source. crop_bars: cut off dark bars, for scorers too.
    """

    crf: int = Field(default=18, ge=0, le=51)
    fps: Annotated[str, BeforeValidator(lambda value: "" if value == "" else read_rate(value))] = ""
    size: Annotated[str, BeforeValidator(lambda value: "" if value == "" else read_size(value))] = ""
    crop_bars: bool = False

    @property
    def target(self) -> Target:
        return Target.of(self.fps, self.size)


class ComponentTable(BaseModel):
    """A component's table: its name, and options that the component itself validates."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(min_length=1)

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Profile(Options):
    """A whole profile, as `load` returns it. `Components` checks what it names."""

    source: SourceOptions = SourceOptions()
    split: ComponentTable
    score: tuple[ComponentTable, ...] = ()
    filter: tuple[ComponentTable, ...] = ()
    caption: ComponentTable | None = None
    clips: ClipOptions = ClipOptions()


@dataclass(frozen=True, slots=True)
class Part:
    """A component with its name and the fingerprint of its code version and settings."""

    name: str
    component: Any
    version: str

    @property
    def shown_version(self) -> str:
        """For rows: the component's own version, then its settings."""
        return f"{self.component.version}+{self.version[:8]}"


class Components:
    """The components of a profile, built, in the order in which they run. Nothing heavy is loaded.

    Raises UserError for unknown names and settings, and for a filter whose score no scorer computes.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.split = _part("split", profile.split)
        scorers = [_part("score", named) for named in profile.score]
        # cheap ones first: a clip dropped by them costs no more
        self.scores = sorted(scorers, key=lambda part: float(part.component.cost))
        self.filters = [_part("filter", named) for named in profile.filter]
        self.caption = _part("caption", profile.caption) if profile.caption else None
        self.every = [self.split, *self.scores, *self.filters, *([self.caption] if self.caption else [])]
        for kind, parts in (("score", self.scores), ("filter", self.filters)):
            for name, count in Counter(part.name for part in parts).items():
                if count > 1:
                    raise UserError(f"the profile names the {kind} {name!r} {count} times; name it once")
        computed = [part.name for part in self.scores]
        for part in self.filters:
            for score in part.component.scores:
                if score not in computed:
                    raise UserError(
                        f"the filter {part.name!r} reads the score {score!r}, which the profile does not compute; "
                        f"add [[score]] name = {score!r}{nearest(score, computed)}"
                    )

    def check(self, name: str) -> None:
        """Raises UserError, one line, that names every path and package that the components lack."""
        lines = [line for part in self.every for line in missing(part.component)]
        if lines:
            raise UserError(
                f"profile {name!r} cannot run, {len(lines)} missing: {'; '.join(lines)}"
                " (`--profile offline` needs no weights)"
            )


def load(
    name: str,
    settings: Iterable[str] = (),
    filters: Iterable[str] = (),
    tables: Mapping[str, Any] | None = None,
    split_before: str = "",
) -> dict[str, Any]:
    """The tables of a profile with `--set`s and `--filter`s applied, for `parse`.

    name: "offline", "paper", "reference-v2" or a TOML file. tables: used instead of reading `name`. split_before: the
    splitter of an earlier run of the set.
    Raises UserError for an unreadable file, for settings of unknown places, and if `auto` is not what it was before.
    """
    found = dict(tables) if tables is not None else read_profile(name)
    for wanted in filters:
        _add_filter(found, wanted)
    # replacements first: settings of the new component must not reach the old one
    for setting in sorted(settings, key=lambda text: not text.partition("=")[0].strip().endswith(".name")):
        _apply(found, setting)
    split = found.get("split")
    if isinstance(split, dict) and split.get("name") == AUTO:
        found["split"] = {**split, "name": _choose_splitter(split_before)}
    return found


def parse(tables: Mapping[str, Any], name: str) -> Profile:
    """Raises UserError, one line with the nearest name, for an unknown key or an invalid value."""
    return validate(Profile, dict(tables), f"profile {plain(name)}")


def read_profile(name: str) -> dict[str, Any]:
    """The tables of a profile as they are written. Raises UserError for an unreadable file."""
    if name in NAMES:
        text = resources.files("ea_data").joinpath(f"profiles/{name}.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"`--profile` must be {', '.join(NAMES)} or a TOML file, got {name!r}, which does not exist"
            f"{nearest(name, NAMES)}"
        )
    return read_toml(path, "--profile")


def _choose_splitter(before: str) -> str:
    chosen = next(name for name in AUTO_SPLITTERS if not missing(make("splitters", name)))
    if before in AUTO_SPLITTERS and before != chosen:
        why = "; ".join(missing(make("splitters", before))) or f"{chosen!r} was not installed then"
        raise UserError(
            f"the set was split by {before!r}, but `auto` now stands for {chosen!r} ({why}), which finds other clips; "
            f"resume with `--set split.name={before}`, or start over with `--set split.name={chosen}`"
        )
    return chosen


def _part(kind: str, named: ComponentTable) -> Part:
    component = make(KINDS[kind], named.name, named.settings)
    options = getattr(component, "options", None)
    settings = options.model_dump(mode="json") if isinstance(options, BaseModel) else named.settings
    return Part(named.name, component, fingerprint(kind, named.name, component.version, settings))


def _add_filter(tables: dict[str, Any], name: str) -> None:
    """Adds a filter with its defaults, and the scorers it reads if they are missing."""
    listed = tables.setdefault("filter", [])
    if any(table.get("name") == name for table in listed):
        return
    component = make("filters", name, {})
    listed.append({"name": name})
    computed = {table.get("name") for table in tables.setdefault("score", [])}
    lacking = [score for score in component.scores if score not in computed]
    tables["score"] += [{"name": score} for score in lacking if score in get_host().records("scorers")]


def _apply(tables: dict[str, Any], setting: str) -> None:
    """Puts one `split.key=value` or `score.name.key=value` into the tables."""
    keys, value = read_setting(setting)
    if len(keys) < 2:
        raise UserError(
            f"`--set` must read table.key=value or score.NAME.key=value, such as filter.motion.min=0.01, "
            f"got {setting!r}"
        )
    table, *path = keys
    known = list(Profile.model_fields)
    if table not in known:
        hint = nearest(table, known) or f"; there are: {', '.join(known)}"
        raise UserError(f"`--set {setting}`: unknown table {table!r}{hint}")
    place: Any = tables.setdefault(table, [] if table in ("score", "filter") else {})
    if isinstance(place, list):
        names = [one.get("name", "") for one in place]
        if path[0] not in names or len(path) < 2:
            raise UserError(
                f"`--set {setting}`: the profile has no {table} {path[0]!r}; it has: "
                f"{', '.join(names) or 'none'}{nearest(path[0], names)}"
            )
        place, path = place[names.index(path[0])], path[1:]
    if path == ["name"] and place.get("name") != value:
        place.clear()  # the options were those of the component that it replaces
    put_setting(place, path, value, setting)
