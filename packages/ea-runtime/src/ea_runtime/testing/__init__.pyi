from .fakes import FakeDenoiser, FakeTextEncoder, FakeVae
from .hosts import host_with, write_package

__all__ = ["FakeDenoiser", "FakeTextEncoder", "FakeVae", "host_with", "write_package"]
