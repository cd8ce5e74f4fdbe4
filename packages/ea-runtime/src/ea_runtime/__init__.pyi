from .generation.pipeline import VideoPipeline
from .hookspecs import hookimpl
from .plugins.host import list_plugins

__all__ = ["VideoPipeline", "hookimpl", "list_plugins"]

__version__: str
