"""The hooks themselves: documented, typed, taking nothing, and free of heavy imports."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import typing
from fractions import Fraction

import pytest

from ea_runtime import hookspecs, records
from ea_runtime.hookspecs import KINDS
from ea_runtime.records import Record, SamplerRecord, ScorerRecord, VaeRecord

SPECS = {name: value for name, value in vars(hookspecs).items() if hasattr(value, "ea_spec")}


def test_every_spec_is_a_kind_and_every_kind_a_spec() -> None:
    assert {hook for hook, _ in KINDS.values()} == SPECS.keys()


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_takes_nothing_says_what_it_is_for_and_returns_a_list_of_its_record(name: str) -> None:
    spec = SPECS[name]
    record_type = next(record_type for hook, record_type in KINDS.values() if hook == name)
    assert not inspect.signature(spec).parameters
    assert inspect.getdoc(spec)
    assert typing.get_type_hints(spec)["return"] == list[record_type]


@pytest.mark.parametrize("record_type", [record_type for _, record_type in KINDS.values()])
def test_a_record_is_frozen_and_says_what_build_does(record_type: type[Record]) -> None:
    record = record_type("name", "one line", lambda: None)
    assert issubclass(record_type, Record)
    assert "`build(" in (record_type.__doc__ or "")
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["", "Euler", "eu ler", "-euler", "euler\n", "eüler", "a/b", "..", None])
def test_names_are_what_can_be_typed(name: str) -> None:
    with pytest.raises(ValueError, match="`name` of a SamplerRecord must be lower case letters"):
        SamplerRecord(name, "one line", print)


@pytest.mark.parametrize("name", ["euler", "euler-a", "dpm++", "t5_xxl", "3d"])
def test_good_names(name: str) -> None:
    assert SamplerRecord(name, "one line", print).name == name


def test_the_other_fields_are_checked() -> None:
    with pytest.raises(ValueError, match=r"`build` of SamplerRecord 'x' must be .*, got 3"):
        SamplerRecord("x", "one line", 3)
    with pytest.raises(ValueError, match=r"`build` of SamplerRecord 'x' must be .*'module:name', got 'a b'"):
        SamplerRecord("x", "one line", "a b")
    with pytest.raises(ValueError, match="`summary` of SamplerRecord 'x' must be one line"):
        SamplerRecord("x", "two\nlines", print)
    with pytest.raises(ValueError, match="`class_names` of VaeRecord 'x' must be a tuple"):
        VaeRecord("x", "one line", print, class_names="Vae")  # pyright: ignore[reportArgumentType]


def test_a_name_stands_for_what_is_called_or_returned() -> None:
    called = ScorerRecord(
        "x", "one line", "fractions:Fraction", "ea_runtime.models.layout:GenerationDefaults"
    )
    assert called.build(3, 4) == Fraction(3, 4)
    options = called.options_model()
    assert options is not None
    assert options.__name__ == "GenerationDefaults"
    given = VaeRecord("x", "one line", "fractions:Fraction.from_float", export="fractions")
    assert given.build() == Fraction.from_float
    assert given.export() is sys.modules["fractions"]
    assert given == VaeRecord("x", "one line", "fractions:Fraction.from_float", export="fractions")
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        SamplerRecord("x", "one line", "nowhere:build").build()


def test_specs_and_records_import_nothing_heavy() -> None:
    code = (
        f"import sys, {hookspecs.__name__}, {records.__name__}\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'numpy', 'pydantic', 'rich', 'typer'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
