"""The metrics of a run: chosen by name, with their settings, and built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ea_runtime.errors import UserError, nearest
from ea_runtime.evaluation.metric import missing
from ea_runtime.plugins.host import get_host
from ea_runtime.records import MetricRecord
from ea_runtime.settings import put_setting, read_setting, validate


@dataclass(frozen=True)
class Chosen:
    """A metric of a run. settings: its options that are set; picklable, so that another process can build it too."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> MetricRecord:
        """The metric's record. Raises UserError that names the nearest metric."""
        record = get_host().get("metrics", self.name)
        assert isinstance(record, MetricRecord)
        return record

    def build(self) -> Any:
        """The metric. Raises UserError, one line, for an option that it does not have."""
        model = self.record.options_model()
        if model is None:
            if self.settings:
                raise UserError(
                    f"the metric {self.name!r} has no options, got {', '.join(sorted(self.settings))}; leave out --set"
                )
            return self.record.build(None)
        return self.record.build(validate(model, dict(self.settings), f"metric {self.name!r}"))

    def options(self) -> dict[str, Any]:
        """All options, for the report."""
        model = self.record.options_model()
        found = None if model is None else validate(model, dict(self.settings), f"metric {self.name!r}")
        return {} if found is None else found.model_dump(mode="json")


def choose(names: Iterable[str] = (), settings: Sequence[str] = (), *, is_compared: bool) -> list[Chosen]:
    """The metrics of a run, in the order of the installed ones.

    names: those to measure; none: all that need no weights. settings: `metric.option=value`, each adds its metric.
    is_compared: there is another folder, without which metrics of pairs and sets are left out, or refused by name.
    Raises UserError for unknown names and options, and for files and packages that are missing.
    """
    host, names = get_host(), list(dict.fromkeys(names))
    tables = _tables(settings)
    for name in [*names, *tables]:
        record = host.get("metrics", name)
        assert isinstance(record, MetricRecord)
        if record.of != "video" and not is_compared:
            raise UserError(f"the metric {name!r} compares two folders; name the other one with --against")
    if names and (idle := [name for name in tables if name not in names]):
        raise UserError(f"`--set {idle[0]}...` is for a metric that is not measured; add --metric {idle[0]}")
    wanted = names or [
        name
        for name, entry in host.records("metrics").items()
        if isinstance(entry.record, MetricRecord)
        and (name in tables or not entry.record.needs_weights)
        and (entry.record.of == "video" or is_compared)
    ]
    known = list(host.records("metrics"))
    chosen = [Chosen(name, tables.get(name, {})) for name in sorted(wanted, key=known.index)]
    if lacks := [line for one in chosen for line in missing(one.build())]:
        raise UserError("; ".join(lacks))
    return chosen


def _tables(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    tables: dict[str, Any] = {}
    for text in settings:
        keys, value = read_setting(text)
        if len(keys) < 2:
            raise UserError(f"`--set` must be METRIC.OPTION=VALUE, such as seam.chunk=8, got {text!r}")
        put_setting(tables, keys, value, text)
    known = get_host().records("metrics")
    if unknown := next((name for name in tables if name not in known), None):
        get_host().get("metrics", unknown)  # raises, with the nearest name
        raise UserError(f"no metric is called {unknown!r}{nearest(unknown, known)}")
    return tables
