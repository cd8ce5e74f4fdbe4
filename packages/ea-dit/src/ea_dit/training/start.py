"""The start of a run: a fresh network, a trained one, a picture model; motion modules on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ea_dit.motion_files import load_motion
from ea_dit.network.init import initialize_weights
from ea_dit.network.model import Transformer3DModel
from ea_dit.training.options import DitOptions
from ea_dit.weights.from_2d import find_folder, map_config, read_config
from ea_runtime.errors import UserError
from ea_runtime.training.networks import build_network, load_network
from ea_runtime.training.recipe import Context


def start_network(options: DitOptions, context: Context) -> tuple[Transformer3DModel, list[str]]:
    """The network in float32 as [init] and [model] say, and lines that report its sources.

    In a dry run no weights are read. Raises UserError or ValueError, one line.
    """
    init, lines = options.init, []
    if init.folder:
        model = load_network(Transformer3DModel, init.folder, "denoiser")
        lines.append(f"start: {init.folder}")
        if context.task == "inpaint" and not model.cfg.has_known_frames:
            model = widened(model)
            channels = model.cfg.in_channels
            lines.append(
                f"start: widened to {channels} input channels for known frames; the new ones start at zero"
            )
        _same_settings(model, options.model, init.folder)
    elif init.from_2d:
        lines.append(f"start: picture model {init.from_2d}")
        if context.dry_run:
            config = map_config(Transformer3DModel, read_config(find_folder(init.from_2d)), options.model)
            model = build_network(Transformer3DModel, config)
        else:
            model, report = Transformer3DModel.from_pretrained_2d(
                init.from_2d, output_loading_info=True, **options.model
            )
            lines += report.lines
    else:
        model = build_network(Transformer3DModel, options.model)
        initialize_weights(model)
    channels = model.cfg.latent_channels
    if model.cfg.output_channels != 2 * channels:
        raise UserError(
            f"`model.out_channels` must be 2 x in_channels = {2 * channels} (noise and variance), "
            f"got {model.cfg.output_channels}"
        )
    if init.motion:
        report = load_motion(model, Path(init.motion), dry_run=context.dry_run)
        lines.append(f"motion modules: {init.motion}: {report.line}")
    return model, lines


def widened(model: Transformer3DModel) -> Transformer3DModel:
    """A model that takes known frames as further channels, and gives what `model` gives until they are trained.

    It takes no picture of CLIP's: the model before it has no use for one.
    """
    config = dict(model.config) | {"in_channels": 3 * model.cfg.in_channels, "enable_clip_in_inpaint": False}
    wide = build_network(Transformer3DModel, {k: v for k, v in config.items() if not k.startswith("_")})
    tensors = model.state_dict()
    name = "pos_embed.proj.weight"
    if not tensors[name].is_meta:
        old = tensors[name]
        new = old.new_zeros(wide.state_dict()[name].shape)
        new[:, : old.shape[1]] = old
        wide.load_state_dict({**tensors, name: new})
    return wide


def _same_settings(model: Transformer3DModel, table: dict[str, Any], folder: str) -> None:
    """Checks that [model] next to `init.folder` only repeats the folder's own settings."""
    for key, value in table.items():
        have = model.config.get(key, "absent")
        if isinstance(value, dict) and isinstance(have, dict):
            value, have = {**have, **value}, dict(have)
        if have != value:
            raise UserError(
                f"`model.{key}` is {value!r}, but the model in `init.folder` {folder!r} has {have!r}; "
                "leave it out, or train the stages before with it too"
            )
