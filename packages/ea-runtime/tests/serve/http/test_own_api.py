"""The page's API, metrics and health."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from ea_runtime.planning.weights import QUANTIZE_PROGRAM
from ea_runtime.serve.crew import Loading, Worker
from ea_runtime.serve.http import plans
from ea_runtime.serve.http.bodies import fields_of_form, parse_object
from ea_runtime.serve.http.errors import ApiError


def test_about(server: Any) -> None:
    with server.client() as client:
        found = client.get("/api/about").json()
    tiny = found["models"][0]
    assert (tiny["name"], tiny["defaults"]["width"], tiny["frames"][:3]) == ("tiny", 64, [1, 9, 18])
    assert {"name", "summary"} == found["samplers"][0].keys()
    assert found["step_caches"] == ["teacache"]
    assert found["limits"]["queued"] == server.store.max_queued


def test_lists(server: Any) -> None:
    with server.client() as client:
        assert client.get("/api/samplers").json()["samplers"]
        assert client.get("/api/loras").json() == {"loras": []}
        kinds = {one["kind"] for one in client.get("/api/plugins").json()["plugins"]}
        assert {"samplers", "commands"} <= kinds


def test_a_plan_says_memory_and_places_nothing(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ea_runtime.generation.forecasts import forecast_request
    from ea_runtime.generation.requests import ModelRequest
    from ea_runtime.generation.resolve import resolve
    from ea_runtime.models.layout import bundled_folder

    with server.client() as client:
        found = client.post("/api/plan", json={"prompt": "a red circle", "num_frames": 18}).json()
        more = client.post("/api/plan", json={"prompt": "a", "num_frames": 18, "has_picture": True}).json()
        wrong = client.post("/api/plan", json={"prompt": "a", "has_picture": "yes"})
        assert client.post("/api/plan", json={"prompt": "a", "steps": 0}).json()["error"]["param"] == "steps"
        assert client.get("/api/jobs").json()["jobs"] == []
        # enough for what fitted above
        monkeypatch.setattr(plans, "free_memory_of_host", lambda: int(1.1 * found["peak_bytes"]))
        monkeypatch.setattr(plans, "_held_by_workers", lambda: 1)
        never = client.post("/api/plan", json={"prompt": "a", "num_frames": 18, "size": "512x512"}).json()
    request = resolve(ModelRequest.of({"prompt": "a red circle", "num_frames": 18, "seed": 1})).request
    wanted = forecast_request(request, bundled_folder("tiny"), is_last=False)
    assert found["fits"]
    assert found["peak_bytes"] == wanted.peak
    assert found["message"] is None
    assert [one["name"] for one in found["phases"]] == [
        "loading",
        "text",
        "encoding",
        "denoising",
        "decoding",
    ]
    assert more["flops"] > found["flops"]
    assert not never["fits"]
    assert never["largest"]
    assert "the largest that fits" in never["message"]
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "has_picture")


def test_a_plan_counts_the_form_in_which_workers_hold_models(server: Any) -> None:
    peaks = {}
    with server.client() as client:
        for name, loading in (
            ("plain", Loading()),
            ("narrow", Loading(quantize="fp8-unscaled")),
            ("waiting", Loading(offload="group")),
            ("auto", Loading(offload="auto")),
        ):
            server.service.loading = loading
            answer = client.post("/api/plan", json={"prompt": "a red circle", "num_frames": 9}).json()
            peaks[name] = next(one["bytes"] for one in answer["phases"] if one["name"] == "denoising")
    assert peaks["narrow"] < peaks["plain"] + QUANTIZE_PROGRAM - 10_000_000
    assert peaks["narrow"] > peaks["plain"]  # tiny's weights are less than what keeps them narrow
    assert peaks["waiting"] < peaks["plain"] - 10_000_000
    assert peaks["auto"] == peaks["plain"]  # memory is plenty


def test_a_job_waits_is_cancelled_and_deleted(serving: Callable[..., Any]) -> None:
    with serving(worker=False) as server, server.client() as client:
        jobs = [server.ask(f"number {i}") for i in range(3)]
        assert [job["position"] for job in jobs] == [1, 2, 3]
        first = client.post(f"/api/jobs/{jobs[0]['id']}/cancel").json()
        assert (first["state"], first["position"], first["error"]) == ("cancelled", None, None)
        assert client.get(f"/api/jobs/{jobs[2]['id']}").json()["position"] == 2
        page = client.get("/api/jobs", params={"limit": 2}).json()
        assert [job["id"] for job in page["jobs"]] == [job["id"] for job in jobs[:0:-1]]
        assert page["has_more"]
        rest = client.get("/api/jobs", params={"after": page["jobs"][-1]["id"]}).json()
        assert [job["id"] for job in rest["jobs"]] == [jobs[0]["id"]]
        gone = client.delete(f"/api/jobs/{jobs[1]['id']}").json()
        assert gone == {"id": jobs[1]["id"], "deleted": True}
        assert client.delete(f"/api/jobs/{jobs[1]['id']}").status_code == 404
        for name in ("recipe", "preview"):
            answer = client.get(f"/api/jobs/{jobs[2]['id']}/{name}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_ready")


def test_clients_take_turns(serving: Callable[..., Any]) -> None:
    with serving(worker=False) as server:
        for name, count in (("many", 4), ("few", 1)):
            with server.client(headers={"X-EA-Client": name}) as client:
                for i in range(count):
                    assert client.post("/api/jobs", json={"prompt": f"{name} {i}"}).status_code == 201
        order = [server.store.claim("w").request["settings"]["prompt"] for _ in range(5)]
        assert order.index("few 0") <= 1


def test_a_name_of_a_client_that_is_none_is_its_address(serving: Callable[..., Any]) -> None:
    with serving(worker=False) as server, server.client(headers={"X-EA-Client": "../" * 40}) as client:
        job = client.post("/api/jobs", json={"prompt": "x"}).json()
        assert server.store.get(job["id"]).client == "127.0.0.1"


def test_health_and_metrics(serving: Callable[..., Any]) -> None:
    workers = [Worker("cpu", "cpu", "ready", lines=("a secret line",))]
    with serving(workers=lambda: workers) as server, server.client() as client:
        job = server.ask()
        server.until(job["id"], "completed")
        failed = server.ask("please fail")
        server.until(failed["id"], "failed")
        health = client.get("/healthz").json()
        assert health == {
            "status": "ok",
            "workers": [{"name": "cpu", "device": "cpu", "state": "ready"}],
            "queued": 0,
        }
        client.get("/v1/videos/video_" + "1" * 32)
        client.get("/some/scanner.php")
        end = time.monotonic() + 5
        while 'ea_jobs_ended_total{state="failed"} 1.0' not in (text := client.get("/metrics").text):
            assert time.monotonic() < end, text
            time.sleep(0.1)
        assert 'ea_jobs{state="completed"} 1.0' in text
        assert 'ea_workers{state="ready"} 1.0' in text
        assert 'ea_jobs_ended_total{state="completed"} 1.0' in text
        assert 'ea_phase_seconds_count{phase="denoising"} 1.0' in text
        assert 'ea_http_requests_total{method="GET",route="/v1/videos/{id}",status="404"} 1.0' in text
        assert 'ea_http_requests_total{method="GET",route="other",status="404"} 1.0' in text
        assert "scanner" not in text
        rss = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
        assert rss
        assert float(rss[1]) > 1e6


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nul",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=range(11),
)
def test_bodies_that_are_no_object(body: bytes) -> None:
    with pytest.raises(ApiError) as error:
        parse_object(body)
    assert error.value.status == 400


def test_forms_have_the_types_of_json() -> None:
    items = [("prompt", "7"), ("seed", "7"), ("fps", "7.5"), ("smooth", "false"), ("num_frames", "x")]
    items += [("loop", "true"), ("window", "27")]
    items += [
        ("loras[][name]", "a"),
        ("loras[][scale]", "0.5"),
        ("loras[][name]", "b"),
        ("loras[][scale]", "1"),
    ]
    assert fields_of_form(list(items)) == {
        "prompt": "7",
        "seed": 7,
        "fps": 7.5,
        "smooth": False,
        "num_frames": "x",
        "loop": True,
        "window": 27,
        "loras": [{"name": "a", "scale": 0.5}, {"name": "b", "scale": 1.0}],
    }
    for more in ([("seed", "8")], [("loras[][name]", "c")], [("loras", "[]")]):
        with pytest.raises(ApiError):
            fields_of_form([*items, *more])
