"""Networks that a run starts from, in float32: new ones from a [model] table, trained ones from a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ea_runtime.errors import UserError, nearest
from ea_runtime.files.safe import quote_path
from ea_runtime.models.layout import PARTS
from ea_runtime.models.loading import load_part, plan_part, unknown_keys

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def build_network(cls: type[NetworkT], table: dict[str, Any]) -> NetworkT:
    """A `cls` (a diffusers ModelMixin) as the [model] table of a config describes it, with random weights.

    Raises UserError, one line, for an unknown key and for values that describe no such network.
    """
    unknown = unknown_keys(cls, table)
    if unknown:
        known = [key for key in cls.__init__.__annotations__ if key != "return"]
        raise UserError(f"[model]: {cls.__name__} has no key `{unknown[0]}`{nearest(unknown[0], known)}")
    try:
        build: Any = cls
        return build.from_config(table)
    except Exception as error:  # the table is the user's: whatever a constructor raises means a wrong table
        reason = f"{type(error).__name__}: " * (not isinstance(error, ValueError)) + str(error)
        raise UserError(f"[model] describes no {cls.__name__}: {reason[:300]}") from error


def load_network(cls: type[NetworkT], folder: str, part: str) -> NetworkT:
    """The network in `folder` (config.json and safetensors, as a run's `final/` holds them).

    part: "vae" or "denoiser". If torch's default device is "meta" (a dry run), no weights are read: their headers are
    compared, and the network has shapes only.
    Raises UserError, one line: no such folder, no or damaged weights, another class.
    """
    path = Path(folder).resolve()
    if not path.is_dir():
        raise UserError(
            f"`init.folder` must hold config.json and *.safetensors, got {quote_path(folder)}, which is no "
            "folder; train that part first"
        )
    plan = plan_part(path.parent, replace(PARTS[part], folder=path.name))
    device = "meta" if torch.get_default_device().type == "meta" else "cpu"
    network = load_part(plan, device=device, dtype=torch.float32)
    if not isinstance(network, cls):
        raise UserError(
            f"`init.folder` must hold weights of class {cls.__name__}, got {type(network).__name__} in "
            f"{quote_path(folder)}"
        )
    return network
