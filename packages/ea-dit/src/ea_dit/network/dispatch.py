"""Attention by another backend than torch's own: diffusers' dispatcher knows them, their packages compute it.

Without a choice nothing of diffusers is imported, and the call is torch's. "native" is the same call through the
dispatcher, and gives the same bits. What would fetch code when it runs (diffusers' "_hub" backends) is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

#: backends that are tried before it is said that they work, those of packages first
_TRIED = (
    "flash",
    "_flash_3",
    "sage",
    "xformers",
    "native",
    "flex",
    "_native_cudnn",
    "_native_efficient",
    "_native_math",
)
#: the most channels of a head that SageAttention takes
_SAGE_CHANNELS = 128
#: what to install, by the beginning of a backend's name
_PACKAGES = {"flash": "flash-attn", "sage": "sageattention", "xformers": "xformers", "_sage": "sageattention"}


@dataclass(frozen=True)
class Dispatch:
    """A choice of diffusers' dispatcher. backend: its name there. parallel: of diffusers' context parallel, or None."""

    backend: str = "native"
    parallel: Any = None


def scaled_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, dispatch: Dispatch | None = None
) -> Tensor:
    """Attention from queries (N, heads, Q, d) to keys and values (N, heads, S, d) -> (N, heads, Q, d).

    bias: added to the scores, (N, 1, 1, S). Raises ValueError for a bias where the backend takes none.
    """
    if dispatch is None:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    found = dispatch_attention_fn(
        *(one.transpose(1, 2) for one in (queries, keys, values)),  # it takes (N, Q, heads, d)
        attn_mask=bias,
        backend=AttentionBackendName(dispatch.backend),
        parallel_config=dispatch.parallel,
    )
    return found.transpose(1, 2)


class Dispatched(Protocol):
    """The part of an attention layer that is needed here. num_channels: of a head."""

    dispatch: Dispatch | None

    @property
    def num_channels(self) -> int: ...


def choose_backend(layers: Iterable[Dispatched], name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Let a backend compute the attention of layers; those whose heads it does not take keep torch's, with a warning.

    Raises ValueError as `check_backend`.
    """
    layers = list(layers)
    fits = check_backend(name, device, dtype, (layer.num_channels for layer in layers))
    rest = [layer.num_channels for layer in layers if layer.num_channels not in fits]
    if rest:
        logger.warning(
            "attention %r takes no heads of %s channels: %d of %d layers stay torch's own",
            name,
            ", ".join(map(str, sorted(set(rest)))),
            len(rest),
            len(layers),
        )
    for layer in layers:
        parallel = None if layer.dispatch is None else layer.dispatch.parallel
        layer.dispatch = Dispatch(name if layer.num_channels in fits else "native", parallel)


def forget_backend(layers: Iterable[Dispatched]) -> None:
    """torch's own attention again."""
    for layer in layers:
        if layer.dispatch is not None:
            is_split = layer.dispatch.parallel is not None
            layer.dispatch = replace(layer.dispatch, backend="native") if is_split else None


def check_backend(name: str, device: torch.device, dtype: torch.dtype, channels: Iterable[int]) -> set[int]:
    """The numbers of channels of a head, among `channels`, that a backend computes on a device in a number format.

    Raises ValueError, in one line with the backends that work here, for an unknown name, a backend that fetches code,
    one whose package is not installed, and one that computes none of them.
    """
    known = _known()
    if name not in known:
        close = get_close_matches(name, known, 1)
        raise ValueError(
            f"`attention` {name[:40]!r} is no backend of diffusers'{f'; did you mean {close[0]}?' if close else ''}; "
            f"{_working(device, dtype)}"
        )
    if "_hub" in name:
        raise ValueError(
            f"`attention` {name!r} fetches its code from a server when it runs, and nothing is fetched here; "
            f"{_working(device, dtype)}"
        )
    reason = _missing(name)
    if reason is not None:
        raise ValueError(f"`attention` {name!r} {reason}; {_working(device, dtype)}")
    faults: dict[int, str] = {}
    sizes = sorted(set(channels))
    for size in sizes:
        fault = _fault(name, device, dtype, size)
        if fault is not None:
            faults[size] = fault
    if len(faults) == len(sizes):
        format = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"`attention` {name!r} does not run on {device.type} in {format} ({faults[sizes[0]]}); "
            f"{_working(device, dtype)}"
        )
    return set(sizes) - set(faults)


def _known() -> list[str]:
    from diffusers.models.attention_dispatch import AttentionBackendName

    return [one.value for one in AttentionBackendName]


def _missing(name: str) -> str | None:
    """Why a backend's package cannot be used, or None."""
    from diffusers.models.attention_dispatch import (
        AttentionBackendName,
        _check_attention_backend_requirements,
    )

    try:
        _check_attention_backend_requirements(AttentionBackendName(name))
    except RuntimeError:
        package = next((one for start, one in _PACKAGES.items() if name.startswith(start)), None)
        return f"needs the package {package}; run `pip install {package}`" if package else "is not installed"
    return None


def _fault(name: str, device: torch.device, dtype: torch.dtype, channels: int) -> str | None:
    """Why an attention of two tokens fails in a backend, or None."""
    tokens = torch.ones(1, 1, 2, channels, device=device, dtype=dtype)
    if name.startswith(("sage", "_sage")) and channels > _SAGE_CHANNELS:
        return f"heads of {channels} channels, {_SAGE_CHANNELS} at most"
    try:
        with torch.inference_mode(), _no_logs():
            out = scaled_attention(tokens, tokens, tokens, None, Dispatch(name))
    except Exception as error:  # whatever a kernel raises
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None if out.shape == tokens.shape and bool(out.isfinite().all()) else "its result is wrong"


def _working(device: torch.device, dtype: torch.dtype) -> str:
    works = [name for name in _TRIED if _missing(name) is None and _fault(name, device, dtype, 64) is None]
    return f"what works here: {', '.join(works)}"


@contextmanager
def _no_logs() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
