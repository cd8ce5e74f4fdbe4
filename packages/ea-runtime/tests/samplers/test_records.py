"""The samplers' records: names, citations, and schedulers over the shared schedule."""

from __future__ import annotations

import inspect

import pytest

from ea_runtime.samplers import SAMPLERS, V2_SCHEDULE

NAMES = ["euler", "euler-a", "dpm++", "pndm", "ddim", "unipc"]
RECORDS = {record.name: record for record in SAMPLERS}


def test_all_samplers_are_there():
    assert [record.name for record in SAMPLERS] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_sampler_has_its_citation_and_the_shared_schedule(name):
    record = RECORDS[name]
    assert "arXiv" in (inspect.getmodule(record.build).__doc__ or "")
    config = record.build().config
    assert {key: config[key] for key in V2_SCHEDULE if key in config} == {
        key: value for key, value in V2_SCHEDULE.items() if key in config
    }
    assert record.build(beta_end=0.01).config["beta_end"] == 0.01


def test_unknown_keys_are_left_to_the_samplers_that_know_them():
    assert RECORDS["ddim"].build(clip_sample=False).config["clip_sample"] is False
    RECORDS["euler"].build(clip_sample=False, solver_order=3, anything=1)
