"""The module of a network that each name of a file means, found by structure: no list of prefixes.

A trainer writes a module's path with dots or with `_` for them, behind a prefix of its choice (`lora_unet_`,
`transformer.`, `base_model.model.`, `module._orig_mod.`). So a name is cut wherever a path may begin; what is left must
be the path of a module, and the file as a whole decides what was cut: one prefix for each network, the one under which
most layers fit, and every name has it. A prefix that only some names have is part of a path of another model, whose
layers must not be put on ours.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from ea_lora.keys import PARTS, Part, flatten

#: words in a name that stand for a text encoder, and the inside of a T5
_TEXT = re.compile(
    r"(^|[._])(te\d*|text_encoders?(_\d)?|t5\w*|clip)[._]|(^|[._])encoder[._]block[._]\d+[._]layer[._]"
)
#: as many prefixes of a network are compared; a good file has one
_MOST_PREFIXES = 16
#: so much longer than a path may its form in a file be: longer numbers, what a converter left at the end
_SPARE = 40


def is_text(name: str) -> bool:
    """True if a name says that it is a text encoder's; the model, where there is one, decides."""
    return _TEXT.search(name) is not None


class Modules:
    """Paths of a network's modules, found by their flattened form.

    any_number: a number stands for any number, so that a model of 6 blocks has the names of one of 28.
    """

    def __init__(self, paths: Iterable[str], *, any_number: bool = False) -> None:
        self.any_number = any_number
        paths = list(paths)
        #: characters at the end of a name that may be a path
        self.longest = max(map(len, paths), default=0) + _SPARE
        #: names of modules along the paths, and those where paths begin
        self.pieces: set[str] = set()
        self.roots: set[str] = set()
        self._paths: dict[str, set[str]] = {}
        for path in paths:
            pieces = path.split(".")
            self.pieces.update(pieces)
            self.roots.add(pieces[0])
            key, form = flatten(path), path
            if any_number:
                key, form = _numbers(key)[0], re.sub(r"\d+", "{}", re.sub(r"([{}])", r"\1\1", path))
            self._paths.setdefault(key, set()).add(form)

    def find(self, flat: str) -> tuple[str, ...]:
        """The paths whose flattened form this is: none, one, or several that look alike."""
        if not self.any_number:
            return tuple(sorted(self._paths.get(flat, ())))
        key, numbers = _numbers(flat)
        return tuple(sorted({form.format(*numbers) for form in self._paths.get(key, ())}))


@dataclass(slots=True)
class Places:
    """The meaning of a file's names. prefixes: removed ones; found: network and path by number of the name (several
    paths: they look alike flattened); also: names without a place that would have one under another prefix."""

    prefixes: dict[Part, str] = field(default_factory=dict)
    found: dict[int, tuple[Part, tuple[str, ...]]] = field(default_factory=dict)
    also: tuple[str, int] | None = None


#: for a network and a prefix: the names, by number, whose rest is the path of a module, and those paths
_Fitting = Mapping[Part, Mapping[str, Mapping[int, tuple[str, ...]]]]


def find_places(names: Sequence[str], text: Sequence[bool], networks: Mapping[Part, Modules]) -> Places:
    """The places of a file's names in the networks; none at all if no prefix fits the file as a whole.

    text: for each name, True if it says that it is a text encoder's (`is_text`).
    """
    fitting: dict[Part, dict[str, dict[int, tuple[str, ...]]]] = {part: {} for part in PARTS}
    plain: dict[Part, list[str]] = {}
    for part, modules in networks.items():
        plain[part] = [_plain(name, modules.pieces) for name in names]
        for number, name in enumerate(plain[part]):
            for prefix, paths in _cuts(name, modules, is_processor=".processor." in names[number]):
                fitting[part].setdefault(prefix, {})[number] = paths
    best = Places()
    for prefixes in _choices(fitting):
        places = _under(prefixes, fitting, text)
        left = [n for n in range(len(names)) if n not in places.found and not text[n]]
        covers = all(any(plain[part][n].startswith(one) for part, one in prefixes.items()) for n in left)
        if covers and len(places.found) > len(best.found):
            best = places
    best.also = _elsewhere(best, fitting, networks)
    return best


def _plain(name: str, pieces: Collection[str]) -> str:
    """A name without the pieces that wrap a module and are none of the model's own: `_orig_mod`,
    `_fsdp_wrapped_module`, diffusers' `processor`."""
    found = name.split(".")
    kept = [one for one in found if one in pieces or not (one.startswith("_") or one == "processor")]
    return ".".join(kept) if len(found) > 1 else name


def _cuts(name: str, modules: Modules, *, is_processor: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every way to cut a prefix off a name so that paths of modules are left: (prefix, paths)."""
    flat, last_dot = flatten(name), name.rfind(".")
    for start in range(max(0, len(name) - modules.longest), len(name)):
        # in a name with dots `_` belongs to a module's own name, unless everything is in its last piece
        if start and name[start - 1] != "." and (name[start - 1] != "_" or start <= last_dot):
            continue
        # some converters leave `_` at the end, where a `.` was
        paths = modules.find(flat[start:]) or modules.find(flat[start:].rstrip("_"))
        if not paths and is_processor:  # they named the list of a module for the module in it
            paths = modules.find(f"{flat[start:]}_0")
        if len(paths) > 1 and last_dot >= 0 and name[start:] in paths:
            paths = (name[start:],)
        if paths:
            yield name[:start], paths


def _choices(fitting: _Fitting) -> Iterator[dict[Part, str]]:
    """Prefixes to compare: none, one or two, those with most names first, of equal ones the shortest."""
    ranked: dict[Part, list[str | None]] = {
        part: [None, *sorted(found, key=lambda prefix: (-len(found[prefix]), len(prefix)))[:_MOST_PREFIXES]]
        for part, found in fitting.items()
    }
    for both in product(*ranked.values()):
        yield {part: one for part, one in zip(ranked, both, strict=True) if one is not None}


def _under(prefixes: Mapping[Part, str], fitting: _Fitting, text: Sequence[bool]) -> Places:
    places = Places(dict(prefixes))
    for part, prefix in prefixes.items():
        for number, paths in fitting[part][prefix].items():
            if number not in places.found or text[number]:  # the text encoder comes second
                places.found[number] = (part, paths)
    return places


def _elsewhere(places: Places, fitting: _Fitting, networks: Mapping[Part, Modules]) -> tuple[str, int] | None:
    """Another prefix and the number of names without a place that it would give one, the largest."""
    counts: dict[str, int] = {}
    for part, found in fitting.items():
        chosen = places.prefixes.get(part)
        for prefix, names in found.items():
            count = sum(number not in places.found for number in names)
            if count and not (chosen is not None and _is_inside(prefix, chosen, networks[part])):
                counts[prefix] = max(count, counts.get(prefix, 0))
    return max(counts.items(), key=lambda one: one[1]) if counts else None


def _is_inside(prefix: str, chosen: str, modules: Modules) -> bool:
    """True if a prefix extends the chosen one, along a path that the model may lack."""
    begins = tuple(f"{flatten(root)}_" for root in modules.roots)
    return prefix.startswith(chosen) if chosen else flatten(prefix).startswith(begins)


def _numbers(text: str) -> tuple[str, list[str]]:
    return re.sub(r"\d+", "#", text), re.findall(r"\d+", text)
