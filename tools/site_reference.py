"""Reference pages from docstrings: one page per folder of code, read with `ast`, nothing imported.

A page has the folder's modules (if they are too many, each has its own page), with their public classes, methods and
functions: signature, then docstring. Anchors are dotted names, such as `ea_runtime.generation.pipeline.VideoPipeline`.
Docstrings are plain text with backticks: everything else in them is escaped.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

#: characters of a folder's page above which each of its modules gets its own
MAX_PAGE = 35_000
#: characters of a signature above which each argument gets its own line
MAX_SIGNATURE = 88
_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_ENTRY = re.compile(r"^(\*{0,2}[\w`][\w`*, /.\[\]-]{0,60}): (.+)$", re.DOTALL)
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def escape(text: str) -> str:
    """Text as Markdown that reads the same; code between backticks stays code."""
    parts, end = [], 0
    for match in _CODE.finditer(text):
        parts += [_escape_plain(text[end : match.start()]), match[0].replace("\n", " ")]
        end = match.end()
    return "".join([*parts, _escape_plain(text[end:])])


def _escape_plain(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]{}#!])", r"\\\1", text)


def docstring(text: str | None) -> str:
    """A docstring as Markdown: paragraphs, indented blocks as code, `name: meaning` under "Args:" as a list."""
    if not text:
        return ""
    made: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = block.splitlines()
        if lines[0].startswith(" "):
            made.append("```text\n" + inspect.cleandoc("\n" + block) + "\n```")
            continue
        inner = next((number for number, line in enumerate(lines) if line.startswith(" ")), len(lines))
        if inner < len(lines) and re.fullmatch(r"\w[\w ]*:", lines[inner - 1]):
            if inner > 1:
                made.append(escape(" ".join(lines[: inner - 1])))
            made.append(f"**{lines[inner - 1]}**")
            made.append("\n".join(f"- {_entry(one)}" for one in _entries(lines[inner:])))
        elif any(re.match(r"[-*] ", line) for line in lines):
            made.append("\n".join(f"- {escape(one[2:])}" for one in _entries(lines)))
        else:
            made.append(escape(" ".join(line.strip() for line in lines)))
    return "\n\n".join(made)


def _entries(lines: list[str]) -> list[str]:
    """Lines joined to entries: one that is indented further continues the one before."""
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    found: list[str] = []
    for line in lines:
        if found and len(line) - len(line.lstrip()) > margin:
            found[-1] += " " + line.strip()
        else:
            found.append(line.strip())
    return found


def _entry(text: str) -> str:
    match = _ENTRY.match(text)
    return escape(text) if match is None else f"**{escape(match[1])}**: {escape(match[2])}"


def signature(node: Definition) -> str:
    """The line with which a definition begins, without its body; long ones with a line for each argument."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in [*node.bases, *node.keywords])
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{word} {node.name}({ast.unparse(node.args)}){returns}"
    if len(line) <= MAX_SIGNATURE:
        return line
    arguments = "".join(f"\n    {one}," for one in _arguments(node.args))
    return f"{word} {node.name}({arguments}\n){returns}"


def _arguments(given: ast.arguments) -> Iterator[str]:
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults))
    for number, (one, default) in enumerate(zip(plain, [*defaults, *given.defaults], strict=True), 1):
        yield _argument(one, default)
        if number == len(given.posonlyargs):
            yield "/"
    if given.vararg:
        yield f"*{ast.unparse(given.vararg)}"
    elif given.kwonlyargs:
        yield "*"
    for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _argument(one, default)
    if given.kwarg:
        yield f"**{ast.unparse(given.kwarg)}"


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    equals = "" if default is None else (" = " if one.annotation else "=") + ast.unparse(default)
    return ast.unparse(one) + equals


def is_public(node: Definition) -> bool:
    return not node.name.startswith("_") and ast.get_docstring(node) is not None


def _definition(node: Definition, name: str, level: int) -> Iterator[str]:
    yield f"{'#' * level} `{node.name}` {{ #{name} }}"
    decorators = "".join(f"@{ast.unparse(one)}\n" for one in node.decorator_list)
    yield f"```python\n{decorators}{signature(node)}\n```"
    yield docstring(ast.get_docstring(node, clean=False))
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and is_public(inner):
                yield from _definition(inner, f"{name}.{inner.name}", level + 1)


def module_name(path: Path, source: Path) -> str:
    """The dotted name of a file under a `src` folder."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module(path: Path, name: str) -> str:
    """A module's part of a page; "" if it has neither a docstring nor anything public."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [
        one
        for one in tree.body
        if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and is_public(one)
    ]
    said = ast.get_docstring(tree, clean=False)
    said = None if said in ("None", "") else said
    if not public and said is None:
        return ""
    parts = [f"## {name.rpartition('.')[2]} {{ #{name} }}", docstring(said)]
    for one in public:
        parts += _definition(one, f"{name}.{one.name}", 3)
    return "\n\n".join(part for part in parts if part) + "\n"


def pages(source: Path) -> dict[str, str]:
    """Every page of one package: the dotted name of each folder with code -> Markdown."""
    made = {}
    for folder in sorted({path.parent for path in source.rglob("*.py")}):
        name = module_name(folder / "__init__.py", source)
        files = sorted(folder.glob("*.py"), key=lambda path: (path.name != "__init__.py", path.name))
        parts = {one: text for path in files if (text := module(path, one := module_name(path, source)))}
        whole = "\n".join(parts.values())
        if len(whole) <= MAX_PAGE:
            made |= {name: f"# {name}\n\n{whole}"} if whole else {}
            continue
        made[name] = (
            f"# {name}\n\n" + "\n".join(f"- [`{one}`]({one}.md)" for one in parts if one != name) + "\n"
        )
        made |= {one: f"# {one}\n\n{text}" for one, text in parts.items() if one != name}
        made[name] += "\n" + parts.get(name, "")
    return made
