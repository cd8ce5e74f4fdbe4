"""Ray Data gives the same rows as local processes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ea_data.records.store import iter_rows
from ea_data.run.engine import Limits
from ea_data.run.engines import make_engine
from ea_data.run.worker import Worker
from ea_runtime.errors import UserError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra `ray` of ea-data)"
)


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of this machine alone, with time to start next to other work."""
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")
    monkeypatch.setenv(
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0"
    )  # as RayEngine does, which finds Ray started here
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_local_rows(
    tmp_path: Path,
    run_set: Callable[..., Any],
    plugin_file: Path,
    tables: dict[str, Any],
    draw_video: Callable[..., Path],
    ray_here: None,
):
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, name in enumerate(("a", "b", "exit", "raise")):
        draw_video(raw / f"{name}.mp4", 48, seed=number, size=(64, 96))
    (raw / "text.mp4").write_text("no video")
    run_set(raw, tmp_path / "local")
    engine = make_engine("ray", Worker(tables, str(raw), [str(plugin_file)]), Limits(2, 60.0, 0))
    outcome = run_set(raw, tmp_path / "ray", engine=engine)
    engine.close()
    assert list(iter_rows(tmp_path / "ray")) == list(iter_rows(tmp_path / "local"))
    for name in ("records.parquet", "dataset.json", "files.csv"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert outcome.statuses == {"ok": 4, "error": 5}


def test_engines_that_there_are(tables: dict[str, Any]):
    with pytest.raises(UserError, match="local or ray"):
        make_engine("spark", Worker(tables, "/"), Limits())
