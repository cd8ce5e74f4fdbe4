"""Small faults for mutation tests: each is a change of one place in a module's source that a test should notice.

Places are those where a promise can break without an error: comparisons, conditions, operands of `and` and `or`,
arithmetic, numbers and names, defaults of parameters and of fields, calls, `raise` and `return`, copies, casts and
`dtype=`. Left alone are docstrings, annotations, imports, log lines, the wording of errors and `slots`.
"""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator
from dataclasses import dataclass

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
Place = ast.expr | ast.stmt
#: methods that return their object again, as a copy or in another format; True if they need arguments to be casts
_CHANGED = {"copy": False, "clone": False, "float": False, "double": False, "to": True, "astype": True}
#: calls whose arguments are words for people
_SPOKEN = ("debug", "info", "warning", "error", "exception", "note", "say")


@dataclass(frozen=True)
class Mutation:
    """A fault: bytes `start` to `end` of the source become `text`. line: of its beginning, from 1."""

    line: int
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        """The module's source with this fault."""
        raw = source.encode()
        return (raw[: self.start] + self.text.encode() + raw[self.end :]).decode()


def mutations(source: str, lines: Container[int] | None = None) -> list[Mutation]:
    """Every fault for a module's source, or those of some lines, in their order; none of them is a syntax error."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: dict[Mutation, None] = {}
    for node, text in _Walk(lines).walk(ast.parse(source)):
        if lines is not None and node.lineno not in lines:
            continue
        start = starts[node.lineno - 1] + node.col_offset
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        end = starts[node.end_lineno - 1] + node.end_col_offset
        one = Mutation(node.lineno, start, end, text)
        ast.parse(one.apply(source))
        found[one] = None
    return sorted(found, key=lambda one: (one.line, one.start))


class _Walk:
    """Yields (node, the text to put in its place); with `lines` only what touches one of them."""

    def __init__(self, lines: Container[int] | None) -> None:
        self.lines = lines

    def walk(self, node: ast.AST, *, is_whole: bool = False) -> Iterator[tuple[Place, str]]:
        """is_whole: the node is a statement's only expression, so its value is not used."""
        if isinstance(node, ast.stmt) and not self._has_line(node):
            return
        yield from self._faults(node)
        if isinstance(node, ast.Call):
            if not is_whole:  # `pass` does the same
                yield from _unchanged(node)
            yield from _untyped(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_params", "type_comment"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_left_alone(node, child):
                    yield from self.walk(child, is_whole=isinstance(node, ast.Expr))

    def _has_line(self, node: ast.stmt) -> bool:
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        return self.lines is None or any(line in self.lines for line in lines)

    def _faults(self, node: ast.AST) -> Iterator[tuple[Place, str]]:
        match node:
            case ast.Compare():
                for at, op in enumerate(node.ops):
                    other = [*node.ops[:at], _COMPARED[type(op)](), *node.ops[at + 1 :]]
                    yield node, _text(ast.Compare(node.left, other, node.comparators))
                for at, value in enumerate(node.comparators):
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        changed = [*node.comparators]
                        changed[at] = ast.Constant(f"{value.value}?")
                        yield node, _text(ast.Compare(node.left, node.ops, changed))
            case ast.BoolOp():
                other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
                yield node, _text(ast.BoolOp(other, node.values))
                for at in range(len(node.values)):
                    rest = [*node.values[:at], *node.values[at + 1 :]]
                    yield node, _text(ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0])
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                yield node, _text(node.operand)
            case ast.BinOp() if type(node.op) in _COMPUTED and not _is_text(node):
                yield node, _text(ast.BinOp(node.left, _COMPUTED[type(node.op)](), node.right))
            case ast.AugAssign() if type(node.op) in _COMPUTED:
                other = _COMPUTED[type(node.op)]()
                yield node, ast.unparse(ast.AugAssign(node.target, other, node.value))
            case ast.If() | ast.While() | ast.IfExp():
                if not isinstance(
                    node.test, ast.Compare | ast.UnaryOp
                ):  # those have a fault that does the same
                    yield node.test, _text(ast.UnaryOp(ast.Not(), node.test))
            case ast.comprehension():
                for test in node.ifs:
                    yield test, "True"
            case ast.Constant(value=bool() as value):
                yield node, str(not value)
            case ast.Constant(value=int() as value):
                yield node, f"({value + 1})"
            case ast.Constant(value=float() as value):
                yield node, repr(value * 2 + 1)
            case ast.Tuple() | ast.List() | ast.Set() if isinstance(
                getattr(node, "ctx", ast.Load()), ast.Load
            ):
                if len(node.elts) > 1 and all(isinstance(one, ast.Constant) for one in node.elts):
                    for at in range(len(node.elts)):
                        yield node, _text(_without(node, at))
            case ast.ExceptHandler(type=ast.Tuple() as kinds):
                for at in range(len(kinds.elts)):
                    yield kinds, _text(_without(kinds, at))
            case ast.Raise() | ast.Assert():
                yield node, "pass"
            case ast.Expr(value=ast.Call()):
                yield node, "pass"
            case ast.Return(value=ast.expr() as value) if not (
                isinstance(value, ast.Constant) and value.value is None
            ):
                yield node, "return None"
            case ast.Break():
                yield node, "continue"
            case ast.Continue():
                yield node, "break"


def _unchanged(node: ast.Call) -> Iterator[tuple[Place, str]]:
    """The object whose copy or cast a call is."""
    match node.func:
        case ast.Attribute(value=value, attr=name) if name in _CHANGED:
            if bool(node.args) == _CHANGED[name] or (name == "to" and node.keywords):
                yield node, _text(value)


def _untyped(node: ast.Call) -> Iterator[tuple[Place, str]]:
    """A call without its `dtype=`."""
    kept = [one for one in node.keywords if one.arg != "dtype"]
    if len(kept) < len(node.keywords):
        yield node, _text(ast.Call(node.func, node.args, kept))


def _without(node: ast.Tuple | ast.List | ast.Set, at: int) -> ast.expr:
    rest = [*node.elts[:at], *node.elts[at + 1 :]]
    return type(node)(rest) if isinstance(node, ast.Set) else type(node)(rest, ast.Load())


def _text(node: ast.expr) -> str:
    """An expression that stands wherever another one stood."""
    return f"({ast.unparse(ast.fix_missing_locations(node))})"


def _is_text(node: ast.BinOp) -> bool:
    """True if a string literal is joined or formatted: wording, and no number."""
    return any(
        isinstance(side, ast.JoinedStr)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in (node.left, node.right)
    )


def _is_left_alone(parent: ast.AST, child: ast.AST) -> bool:
    match child:
        case ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return True
        case ast.Expr(value=ast.Constant()):  # a docstring
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name))) if name in _SPOKEN:
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.keyword(arg="slots"):  # memory alone
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
    return isinstance(parent, ast.Raise)  # that it raises is a promise, its wording is not
