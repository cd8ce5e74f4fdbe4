"""tools/mutants.py: which faults it makes of a source, where it leaves a source alone, and the shadow of a package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"
if sys.platform == "win32":
    pytest.skip("it forks", allow_module_level=True)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MUTATIONS, MUTANTS = load("mutations"), load("mutants")


def faults(source: str) -> list[str]:
    return [one.apply(source) for one in MUTATIONS.mutations(source)]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("a < b", ["(a <= b)"]),
        ("a in b", ["(a not in b)"]),
        ("a == 'ü'", ["(a != 'ü')", "(a == 'ü?')"]),
        ("a and b and c", ["(a or b or c)", "(b and c)", "(a and c)", "(a and b)"]),
        ("not (a or b) and c", ["(not (a or b) or c)", "(c)", "(not (a or b))", "(a or b) and c"]),
        ("x = -a", ["x = (a)"]),
        ("a + b * c", ["(a - b * c)", "a + (b / c)"]),
        ("a |= b", ["a &= b"]),
        ("a = 3", ["a = (4)"]),
        ("a: int = 3", ["a: int = (4)"]),
        ("a = True", ["a = False"]),
        ("def f(a: int = 0) -> None: ...", ["def f(a: int = (1)) -> None: ..."]),
        ("a = ('x', 'y')", ["a = (('y',))", "a = (('x',))"]),
        ("if a: f()", ["if (not a): f()", "if a: pass"]),
        ("raise E(1 + 2, a < b)", ["pass"]),
        ("f(x)", ["pass"]),
        ("try: f = 1\nexcept (A, B): g = h", ["try: f = (2)\nexcept (A, B): g = h"]),
        ("a[1:]", ["a[(2):]"]),
        ("[a for a in b if c(a)]", ["[a for a in b if True]"]),
        ("while a: break", ["while (not a): break", "while a: continue"]),
        ("def f():\n    return a", ["def f():\n    return None"]),
        ("a = b.copy()", ["a = (b)"]),
        ("a = b[1].clone(memory_format=c)", ["a = (b[1])", "a = b[(2)].clone(memory_format=c)"]),
        ("a = b.float().astype(c)", ["a = (b.float())", "a = (b).astype(c)"]),
        ("a = b.double() - c.to(device=d)", ["a = (b) - c.to(device=d)", "a = b.double() - (c)"]),
        ("a = f(b, dtype=c, out=d)", ["a = (f(b, out=d))"]),
        ("f(b.to(c), dtype=d)", ["(f(b.to(c)))", "f((b), dtype=d)", "pass"]),
    ],
)
def test_the_faults_of_a_source(source: str, wanted: list[str]) -> None:
    found = faults(source)
    assert [one for one in wanted if one not in found] == [], found
    assert source not in found
    assert len(set(found)) == len(found)


def test_the_faults_of_some_lines() -> None:
    source = "a = 1\nb = 2\nc = 3\n"
    every = MUTATIONS.mutations(source)
    assert MUTATIONS.mutations(source, [1, 3]) == [every[0], every[2]]


def test_a_cast_whose_value_is_not_used_is_dropped_once() -> None:
    assert faults("a.to(b)") == ["pass"]


def test_each_exception_of_several_is_dropped() -> None:
    assert {one.splitlines()[1] for one in faults("try: f = g\nexcept (A, B): g = h")} == {
        "except ((B,)): g = h",
        "except ((A,)): g = h",
    }


@pytest.mark.parametrize(
    "source",
    [
        '"""Has 1 < 2 and words."""',
        "from a import b",
        "def f(a: Literal[1, 2]) -> tuple[int, 3]: ...",
        "logger.warning('%s is %d', a, 1 + 2)",
        "x = f'{a + 1}'",
        "if TYPE_CHECKING:\n    a = 1",
        "__all__ = ['a', 'b']",
        "@dataclass(slots=True)\nclass A: ...",
        "def f():\n    return None",
        "a = copy.copy(b)",
        "a = b.float",
        "a = b.to()",
    ],
)
def test_what_is_left_alone(source: str) -> None:
    assert faults(source) == []


def test_a_shadow_holds_the_faulty_module_and_links_to_all_else(tmp_path: Path) -> None:
    module: Any = MUTANTS.find_module("ea_runtime.files.safe")
    assert module.tests[0].name == "test_safe.py"
    shadow = MUTANTS.Shadow(module, tmp_path)
    shadow.write("broken = True\n")
    assert shadow.file.relative_to(shadow.folder).as_posix() == "ea_runtime/files/safe.py"
    assert shadow.file.read_text() == "broken = True\n"
    assert "broken" not in module.path.read_text()
    assert (shadow.folder / "ea_runtime" / "errors.py").samefile(module.root / "ea_runtime" / "errors.py")
    assert (shadow.folder / "ea_runtime" / "files" / "atomic.py").is_symlink()
    assert not (shadow.folder / "ea_runtime" / "files").is_symlink()


def test_a_sample_is_always_the_same_and_in_order() -> None:
    every = MUTATIONS.mutations("a = 1 + 2 * 3\n" * 5)
    found = MUTANTS.drawn(every, 4)
    assert MUTANTS.drawn(every, 4) == found == [one for one in every if one in found]
    assert (len(set(found)), found == every[:4]) == (4, False)
    assert MUTANTS.drawn(every, None) == MUTANTS.drawn(every, len(every)) == every


def test_modules_that_cannot_be_tried_are_one_line() -> None:
    for name in ("ea_runtime.no.such", "nothing"):
        with pytest.raises(SystemExit, match=r"`MODULE` must be the dotted name"):
            MUTANTS.find_module(name)


def test_every_listed_module_and_test_is_there() -> None:
    table = MUTANTS.settings()
    for name in table["tests"]:
        assert all(path.is_file() for path in MUTANTS.find_module(name).tests), name
    lines: dict[str, set[tuple[str, str]]] = {}
    for one in table.get("equivalent", []):
        name = one["module"]
        if name not in lines:
            source = MUTANTS.find_module(name).path.read_text(encoding="utf-8")
            known = " ".join(other["was"] for other in table.get("equivalent", []) if other["module"] == name)
            numbers = {n for n, line in enumerate(source.splitlines(), 1) if line and line.strip() in known}
            faults = MUTATIONS.mutations(source, numbers)
            lines[name] = {MUTANTS.changed_lines(source, fault) for fault in faults}
        assert (one["was"], one["becomes"]) in lines[name], one
        assert one["reason"]
