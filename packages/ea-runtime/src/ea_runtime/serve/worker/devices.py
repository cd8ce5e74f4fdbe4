"""Prints the devices of this machine as a JSON list; a separate program, as the server imports no torch."""

from __future__ import annotations

import json
import sys


def devices() -> list[str]:
    """ "cuda:0" and so on, else "mps", else "cpu"."""
    import torch

    if torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["mps" if torch.backends.mps.is_available() else "cpu"]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(devices()) + "\n")
