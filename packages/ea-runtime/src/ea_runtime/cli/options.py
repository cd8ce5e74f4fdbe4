"""Options that several commands have, each written once."""

from __future__ import annotations

from typing import Annotated

from typer import Option

Quantize = Annotated[
    str | None,
    Option(
        "--quantize",
        help="Weights in fewer bits: int8, fp8, nf4, fp8-unscaled or FILE.gguf of the denoiser; "
        "denoiser=int8,text=nf4; none.",
    ),
]
Offload = Annotated[
    str | None,
    Option(
        "--offload",
        help="Where weights wait that are not in use: none, model, group or sequential; auto: the cheapest that "
        "fits. Default: auto.",
    ),
]
