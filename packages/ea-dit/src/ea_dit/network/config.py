"""The one config of the denoiser: the keys of a `config.json`, checked once, each error in one line.

`Transformer3DModel.__init__` takes the same keys (diffusers reads its signature); `from_mapping` turns them
into this frozen dataclass, from which every layer is built. The defaults are EasyAnimate V2's
published values. Numbers that follow from others (width, skips, whether sizes are conditions) are properties.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

logger = logging.getLogger(__name__)

ACTIVATIONS = ("gelu-approximate", "gelu", "geglu")
MOTION_TYPES = ("Vanilla", "VanillaGrid")
TEMPORAL, GLOBAL = "Temporal_Self", "Global_Self"
BLOCK_TYPES = ("motionmodule", "global_motionmodule")  # V2's, and V3's with two kinds of motion modules
CLIP_CHANNELS, CLIP_TOKENS = 768, 8  # V3: CLIP's embedding of a picture becomes that many text tokens
MOTION_NORM_GROUPS = 32  # fixed in V2, whatever `norm_num_groups` says
TIME_CHANNELS = 256  # sinusoidal features of a timestep, before its MLP
SIZE_CONDITION_SAMPLE_SIZE = 128  # PixArt's rule: the 1024-pixel model takes sizes as conditions

# Published keys that would change the network in ways this package does not build: only these values pass.
_ONLY: dict[str, tuple[Any, ...]] = {
    "norm_type": ("ada_norm_single",),
    "attention_type": ("default",),
    "patch_3d": (False, None),
    "fake_3d": (False, None),
    "casual_3d": (False, None),
    "casual_3d_upsampler_index": (None,),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False, None),
    "double_self_attention": (False, None),
    "time_position_encoding_before_transformer": (False, None),
    "qk_norm": (False, None),
    "after_norm": (False, None),
}
_ONLY_MOTION: dict[str, tuple[Any, ...]] = {
    "cross_frame_attention_mode": (None,),
    "global_attention": (False, None),
    "qk_norm": (False, None),
    "remove_time_embedding_in_photo": (False, None),
}
# Published keys without any effect here: the arithmetic is the same, or the branch they steer is not built.
_WITHOUT_EFFECT = {
    "norm_num_groups",
    "num_embeds_ada_norm",
    "time_patch_size",
    "upcast_attention",
    "use_linear_projection",
}
_WITHOUT_EFFECT_MOTION = {"global_num_attention_heads"}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_counts(config: Any, where: str = "") -> None:
    """Raises ValueError unless every integer of a dataclass is positive; those of type `int | None` may be None."""
    for name, kind in ((one.name, one.type) for one in fields(config)):
        value = getattr(config, name)
        if kind == "int" or (kind == "int | None" and value is not None):
            is_int = isinstance(value, int) and not isinstance(value, bool)
            _require(
                is_int and value > 0,
                f"`{where}{name}` must be a positive integer, got {value!r}; set it in config.json",
            )


def _take(
    cls: type, values: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]], ignored: set[str], where: str
) -> dict[str, Any]:
    """The entries of `values` that are fields of `cls`; refuses unsupported values, reports unknown keys."""
    known = {f.name for f in fields(cls)}
    unknown = []
    for name, value in values.items():
        if name in only and value not in only[name]:
            raise ValueError(
                f"`{where}{name}` must be {only[name][0]!r}, got {value!r}; ea-dit builds no other kind"
            )
        if name not in known and name not in only and name not in ignored and not name.startswith("_"):
            unknown.append(name)
    if unknown:
        logger.warning(
            "unknown keys in the config of Transformer3DModel, ignored: %s",
            ", ".join(where + n for n in unknown),
        )
    return {name: value for name, value in values.items() if name in known}


@dataclass(frozen=True)
class MotionConfig:
    """`motion_module_kwargs` of a published config.

    Attributes:
        num_attention_heads: heads of the temporal attentions.
        num_transformer_block: transformer blocks in one motion module.
        attention_block_types: of each attention of such a block: "Temporal_Self", of a token with itself in other
            frames, or "Global_Self" (V3), of all tokens of the video.
        temporal_position_encoding: add a sinusoidal position before each temporal attention.
        temporal_position_encoding_max_len: rows of that table, so the largest number of latent frames.
        temporal_attention_dim_div: inner width is the model's width divided by this.
        block_size: with "VanillaGrid", tokens attend over block_size x block_size neighbours x time.
        zero_initialize: start the output projection at zero, so that a fresh module is the identity.
    """

    num_attention_heads: int = 8
    num_transformer_block: int = 1
    attention_block_types: tuple[str, ...] = ("Temporal_Self", "Temporal_Self")
    temporal_position_encoding: bool = True
    temporal_position_encoding_max_len: int = 4096
    temporal_attention_dim_div: int = 1
    block_size: int = 1
    zero_initialize: bool = True

    @classmethod
    def from_mapping(
        cls, values: Mapping[str, Any] | None, name: str = "motion_module_kwargs"
    ) -> MotionConfig:
        """Build from a JSON object. name: its key, for errors.

        Raises ValueError (one line) for a module that this package cannot build.
        """
        if values is None:
            return cls()
        where = f"{name}."
        # Differs from EasyAnimate: a string is refused, never evaluated.
        _require(
            isinstance(values, Mapping),
            f"`{name}` must be a JSON object, got {type(values).__name__}; write {{...}} without quotes",
        )
        kwargs = _take(cls, values, _ONLY_MOTION, _WITHOUT_EFFECT_MOTION, where)
        if "attention_block_types" in kwargs:
            kwargs["attention_block_types"] = tuple(kwargs["attention_block_types"])
        try:
            return cls(**kwargs)
        except ValueError as error:
            raise ValueError(str(error).replace("motion_module_kwargs.", where)) from None

    def __post_init__(self) -> None:
        where = "motion_module_kwargs."
        _require_counts(self, where)
        bad = [kind for kind in self.attention_block_types if kind not in (TEMPORAL, GLOBAL)]
        _require(
            not bad,
            f"`{where}attention_block_types` may only hold {TEMPORAL!r} and {GLOBAL!r}, got {bad[:1]}; remove it",
        )


@dataclass(frozen=True)
class TransformerConfig:
    """The validated config of `Transformer3DModel`; names are the published keys.

    Attributes:
        sample_size: the native size in latents (64 for 512 pixels): position embeddings of other sizes are
            interpolated to it, and 128 adds resolution and aspect ratio as conditions.
        caption_channels: width of the text encoder's output (4096 for T5 XXL); None: the text already has
            `cross_attention_dim` channels and is not projected.
        enable_uvit: long skips from the first half to the second.
        basic_block_type: "motionmodule" (V2), or "global_motionmodule" (V3): blocks 0, 2, ... have motion modules of
            `motion_module_kwargs_even`, the others of `motion_module_kwargs_odd`.
        in_channels: of the latents; V3's 12 are 4 of the latents, 4 of the coded mask, 4 of the masked video.
        enable_clip_in_inpaint: a model that takes known frames takes CLIP's embedding of the picture too, as V3's does.
    """

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = 8
    num_layers: int = 28
    dropout: float = 0.0
    cross_attention_dim: int | None = 1152
    attention_bias: bool = True
    sample_size: int = 64
    patch_size: int = 2
    activation_fn: str = "gelu-approximate"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    caption_channels: int | None = 4096
    basic_block_type: str = "motionmodule"
    enable_uvit: bool = True
    motion_module_type: str = "Vanilla"
    motion_module_kwargs: MotionConfig = field(default_factory=MotionConfig)
    motion_module_kwargs_even: MotionConfig | None = None
    motion_module_kwargs_odd: MotionConfig | None = None
    enable_clip_in_inpaint: bool = True

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TransformerConfig:
        """Build from a config.json's keys; unknown ones are logged. Raises ValueError, one line."""
        kwargs = _take(cls, values, _ONLY, _WITHOUT_EFFECT, "")
        motion = MotionConfig.from_mapping(kwargs.pop("motion_module_kwargs", None))
        for name in ("motion_module_kwargs_even", "motion_module_kwargs_odd"):
            if kwargs.get(name) is not None:
                kwargs[name] = MotionConfig.from_mapping(kwargs[name], name)
        return cls(**kwargs, motion_module_kwargs=motion)

    def __post_init__(self) -> None:
        _require_counts(self)
        _require(0.0 <= self.dropout < 1.0, f"`dropout` must be in [0, 1), got {self.dropout}; use 0.0")
        for name, known in (
            ("activation_fn", ACTIVATIONS),
            ("motion_module_type", MOTION_TYPES),
            ("basic_block_type", BLOCK_TYPES),
        ):
            value = getattr(self, name)
            _require(value in known, f"`{name}` must be one of {', '.join(known)}, got {value!r}")
        width = self.width
        _require(
            width % 4 == 0 and width % MOTION_NORM_GROUPS == 0,
            "`num_attention_heads` x `attention_head_dim` must be a multiple of "
            f"{MOTION_NORM_GROUPS} (the motion modules' norm groups), got {width}",
        )
        for name, motion in self._motions.items():
            _require(
                motion is not None,
                f"`{name}` must be given with `basic_block_type` {self.basic_block_type!r}; take it from the model's "
                "published config.json",
            )
            assert motion is not None
            _require(
                width % (motion.num_attention_heads * motion.temporal_attention_dim_div) == 0,
                f"`{name}.num_attention_heads` {motion.num_attention_heads} x"
                f" `temporal_attention_dim_div` {motion.temporal_attention_dim_div} must divide the width"
                f" {width}; change one of them",
            )
        sizes = {motion.block_size for motion in self.motions}
        _require(
            len(sizes) == 1,
            f"`block_size` must be the same in the motion modules of even and odd blocks, got {sorted(sizes)}",
        )
        _require(
            not self.has_size_conditions or width % 3 == 0,
            f"`sample_size` {SIZE_CONDITION_SAMPLE_SIZE} adds size conditions: 3 must divide width {width}",
        )

    @property
    def _motions(self) -> dict[str, MotionConfig | None]:
        """The motion modules' settings of blocks 0, 1, and so on in turn, by their keys."""
        if self.basic_block_type == "motionmodule":
            return {"motion_module_kwargs": self.motion_module_kwargs}
        return {
            f"motion_module_kwargs_{one}": getattr(self, f"motion_module_kwargs_{one}")
            for one in ("even", "odd")
        }

    @property
    def motions(self) -> tuple[MotionConfig, ...]:
        """The motion modules' settings of blocks 0, 1, and so on; then they repeat."""
        return tuple(motion for motion in self._motions.values() if motion is not None)

    def motion_of(self, block: int) -> MotionConfig:
        """The settings of a block's motion module."""
        return self.motions[block % len(self.motions)]

    @property
    def has_known_frames(self) -> bool:
        """V3's inpainting models: they take a mask and a masked video next to the latents, and CLIP's picture."""
        return self.out_channels is not None and 2 * self.in_channels == 3 * self.out_channels

    @property
    def has_picture(self) -> bool:
        """True for a model that takes CLIP's embedding of a picture."""
        return self.has_known_frames and self.enable_clip_in_inpaint

    @property
    def latent_channels(self) -> int:
        """C, channels of the latents that are denoised."""
        return self.in_channels // 3 if self.has_known_frames else self.in_channels

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def text_width(self) -> int:
        """Width of the text embeddings that the model takes."""
        return self.caption_channels or self.cross_attention_dim or self.width

    @property
    def text_inner_width(self) -> int:
        """Width of the text tokens that the blocks take."""
        return self.cross_attention_dim or self.width

    @property
    def output_channels(self) -> int:
        return self.in_channels if self.out_channels is None else self.out_channels

    @property
    def has_size_conditions(self) -> bool:
        return self.sample_size == SIZE_CONDITION_SAMPLE_SIZE

    @property
    def motion_block_size(self) -> int:
        """Side of the spatial block that one temporal attention covers; 1 without a grid."""
        return self.motions[0].block_size if self.motion_module_type == "VanillaGrid" else 1

    @property
    def max_frames(self) -> int | None:
        """Most latent frames that the motion modules can place in time; None: no limit."""
        lengths = [
            motion.temporal_position_encoding_max_len
            for motion in self.motions
            if motion.temporal_position_encoding
        ]
        return min(lengths, default=None)

    @property
    def num_skips(self) -> int:
        """Number of U-ViT skips: 13 of 28 blocks, 2 of 6, 3 of 7; a middle block or two take no part.

        Differs from EasyAnimate, which writes 13 and 15 whatever the depth (and breaks below 28 blocks).
        """
        return (self.num_layers - 1) // 2 if self.enable_uvit else 0

    @property
    def first_skip_block(self) -> int:
        """Index of the first block that receives a skip (15 of 28); `num_layers` if there is none."""
        return self.num_layers - self.num_skips
