"""The module that an operation belongs to: the one at work, or in a backward pass the one that did its forward."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules import module as torch_module


class RunningModules:
    """Names of modules by what they compute: the class of the outermost one and the path from there.

    Within the block every module call is followed. torch's own ModuleTracker keeps modules that have ended in a
    backward pass, so it would give the names of others.
    """

    def __init__(self) -> None:
        self._names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._stack: list[nn.Module] = []
        self._by_work: dict[Any, list[str]] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> RunningModules:
        before = torch_module.register_module_forward_pre_hook(self._enter)
        after = torch_module.register_module_forward_hook(self._leave, always_call=True)
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        self._stack.clear()

    def note(self, work: Any) -> None:
        """Remembers that the module at work does `work`: shapes, or whatever identifies its backward pass."""
        if self._stack:
            names = self._by_work.setdefault(work, [])
            name = self._names[self._stack[-1]]
            if name not in names:
                names.append(name)

    def of(self, work: Any) -> str:
        """The modules seen doing this work, in words; "" for none."""
        names = self._by_work.get(work, [])
        more = f" and {len(names) - 1} more of its shape" if len(names) > 1 else ""
        return names[0] + more if names else ""

    def _enter(self, module: nn.Module, args: Any) -> None:
        if module not in self._names:
            root = self._stack[0] if self._stack else module
            for name, inner in root.named_modules(prefix=type(root).__name__):
                self._names.setdefault(inner, name)
            self._names.setdefault(module, type(module).__name__)  # called, but not part of its caller
        self._stack.append(module)

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        while self._stack and self._stack.pop() is not module:
            pass
