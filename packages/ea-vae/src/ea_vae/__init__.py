"""None"""

from __future__ import annotations

import lazy_loader

# The names are in __init__.pyi. Lazy, so that the host can import ea_vae.plugin (for `ea --help`, say) without torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
