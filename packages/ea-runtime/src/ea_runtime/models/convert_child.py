"""The child process that reads one pickled weight file and writes safetensors.

It runs separately, so that a malicious file meets: torch's weights-only unpickler (tensors and plain containers,
nothing callable), an audit hook that stops processes and connections, limits on memory, time and file sizes, and a
parent that accepts only a file whose header passes its own check.

    python -P -m ea_runtime.models.convert_child SOURCE TARGET [SOURCE TARGET ...]

Prints one JSON line per file, {"tensors": n, "bytes": n, "skipped": [...]}, or {"error": "..."} and exits with
code 3.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

#: keys under which training scripts put the weights next to optimiser and step
WEIGHT_KEYS = ("state_dict", "model", "module")
#: prefixes that a wrapper around the whole model leaves
PREFIXES = ("module.", "_orig_mod.")
MAX_TENSORS = 1_000_000
_FORBIDDEN_EVENTS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "subprocess.Popen",
    "pty.spawn",
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "shutil.rmtree",
    "os.chmod",
)


class RefusedError(Exception):
    """The file holds something other than weights. One line."""


def main(argv: list[str]) -> int:
    sources, targets = [Path(name) for name in argv[::2]], [Path(name) for name in argv[1::2]]
    try:
        sizes = [source.stat().st_size for source in sources]
        _limit_resources(max(sizes), sum(sizes))
        import torch

        torch.set_num_threads(1)
        _forbid(targets)
        for source, target, size in zip(sources, targets, sizes, strict=True):
            report = convert(source, target, max_bytes=4 * size + (64 << 20))
            sys.stdout.write(json.dumps(report) + "\n")
    except Exception as error:  # whatever a hostile file provokes reaches the parent as one line
        sys.stdout.write(json.dumps({"error": _reason(error)}) + "\n")
        return 3
    return 0


def convert(source: Path, target: Path, *, max_bytes: int) -> dict[str, Any]:
    """Read `source` with the weights-only unpickler and write its tensors to `target`.

    Raises RefusedError for a file without weights, and where the tensors would take more than `max_bytes`;
    torch's own errors for a damaged file or one that holds more than tensors.
    """
    tensors, skipped = take_tensors(_load(source))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > max_bytes:
        raise RefusedError(f"its tensors would take {total:,} bytes, more than such a file can hold")
    with target.open("xb") as file:
        write_safetensors(file, tensors)
        file.flush()
        os.fsync(file.fileno())
    return {"tensors": len(tensors), "bytes": total, "skipped": skipped[:20]}


def take_tensors(loaded: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in what torch.load gave, wrappers' prefixes removed, and the names of the rest."""
    import torch

    for _ in range(3):
        if not isinstance(loaded, Mapping):
            raise RefusedError(f"it holds a {type(loaded).__name__}, not a dictionary of tensors")
        if any(isinstance(value, torch.Tensor) for value in loaded.values()):
            break
        inner = next((loaded[key] for key in WEIGHT_KEYS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    skipped = [str(name)[:200] for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if not tensors:
        raise RefusedError("it holds no tensors by name")
    if len(tensors) > MAX_TENSORS:
        raise RefusedError(f"it holds {len(tensors):,} tensors, more than the {MAX_TENSORS:,} a model has")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors, skipped


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors one after another; those that share memory get separate bytes.

    Only one tensor is copied at a time, so mapped files of any size go through. Raises RefusedError for
    dtypes and layouts that safetensors does not have.
    """
    import torch

    from ea_runtime.models.weights import DTYPES

    names = {getattr(torch, dtype): name for name, (dtype, _) in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        if (
            tensor.layout is not torch.strided
            or tensor.is_quantized
            or tensor.dtype not in names
            or tensor.is_meta
        ):
            raise RefusedError(
                f"tensor {ascii(name)[:80]} is a {tensor.dtype} {tensor.layout}, which safetensors "
                "cannot hold"
            )
        if name == "__metadata__":
            raise RefusedError("a tensor is called '__metadata__', which safetensors reserves")
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        if tensor.numel():
            flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def _load(source: Path) -> Any:
    import torch

    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        return torch.load(source, mmap=True, **options)
    except RuntimeError as error:
        if "mmap" not in str(error):  # files from before torch 1.6 cannot be mapped
            raise
    return torch.load(source, **options)


def _limit_resources(size: int, total: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: only the parent's time limit remains
        return
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: (6 << 30) + 4 * size,
        resource.RLIMIT_FSIZE: (128 << 20) + 4 * size,
        resource.RLIMIT_CPU: 120 + total // (10 << 20),
    }
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(kind, (limit, hard))


def _forbid(targets: list[Path]) -> None:
    """From here on this process starts no other, connects nowhere, and writes to no file but `targets`."""
    allowed = {os.devnull, *(os.path.abspath(target) for target in targets)}
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in _FORBIDDEN_EVENTS:
            raise RefusedError(f"it tried to do more than hold tensors ({event})")
        is_write = event == "open" and isinstance(args[0], (str, bytes)) and (args[2] or 0) & writing
        if is_write and os.path.abspath(os.fsdecode(args[0])) not in allowed:
            raise RefusedError("it tried to write to another file")

    sys.addaudithook(watch)


def _reason(error: BaseException) -> str:
    """One line without torch's advice, which is to load the file unsafely."""
    import pickle

    if isinstance(error, pickle.UnpicklingError):
        text = " ".join(str(error).split())
        for marker in ("Unsupported global: GLOBAL ", "Trying to load unsupported GLOBAL "):
            if marker in text:
                name = ascii(text.split(marker)[1].split()[0])[1:-1][:80]
                return f"it holds code to run ({name}), not only tensors"
        return "it holds more than tensors, or is damaged"
    if isinstance(error, MemoryError):
        return "its tensors do not fit into memory"
    text = " ".join(str(error).split())
    return ascii(text)[1:-1][:200] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
