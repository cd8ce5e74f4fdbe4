"""`ea serve`: the page and the API, with a queue of jobs and workers that make them."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from ea_runtime.cli.options import Offload, Quantize

if TYPE_CHECKING:
    from ea_runtime.serve.crew import Loading, Settings
    from ea_runtime.serve.jobs import JobStore
    from ea_runtime.serve.ray_workers import RayWorkers
    from ea_runtime.serve.supervisor import Supervisor

app = typer.Typer(add_completion=False)

#: modules of the extra `serve`, and the packages that bring them
_EXTRA = {
    "filelock": "filelock",
    "h11": "h11",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
}


_DEVICE = re.compile(r"cpu|mps|cuda(:[0-9]{1,3})?")
#: seconds in which workers save their places when the server stops
_DRAIN = 60.0


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[
        str, Option(help="Address to listen on; others than this machine's own ask for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(help="Port; 0 takes any that is free.", min=0, max=65535)] = 7860,
    models: Annotated[
        list[Path] | None, Option(help="A model folder, or a folder of several; repeatable.")
    ] = None,
    loras: Annotated[list[Path] | None, Option(help="A folder of LoRA files; repeatable.")] = None,
    state: Annotated[Path | None, Option(help="Folder of jobs and results. Default: the user's own.")] = None,
    token: Annotated[
        str | None, Option(help="Token that clients must send. Made and printed if --host needs one.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, Option(help="Another name of this server in its addresses; repeatable.")
    ] = None,
    device: Annotated[
        list[str] | None,
        Option(help="cpu, cuda, cuda:N or mps; repeatable, one worker each. Default: the best available."),
    ] = None,
    ray: Annotated[
        str | None, Option(help="Address of a Ray cluster that runs the workers, or auto.")
    ] = None,
    quantize: Quantize = None,
    offload: Offload = None,
    max_queue: Annotated[int, Option(help="Jobs that may wait; more get 429.", min=1, max=100_000)] = 64,
    max_per_client: Annotated[int, Option(help="Jobs of one client that may wait.", min=1)] = 16,
    browser: Annotated[
        bool, Option("--browser/--no-browser", help="Open the page in a browser, if there is a display (on).")
    ] = True,
    access_log: Annotated[bool, Option("--access-log", help="Print one line for each request.")] = False,
) -> None:
    """Serve a page and an API that make videos: a queue that outlives kills, one worker per device."""
    _require_extra()
    from ea_runtime.serve.catalogue import Catalogue
    from ea_runtime.serve.crew import Settings
    from ea_runtime.serve.http.access import Access, allowed_hosts, check_token_text, is_loopback
    from ea_runtime.serve.http.app import App
    from ea_runtime.serve.http.server import make_server, open_socket
    from ea_runtime.serve.http.service import Service
    from ea_runtime.serve.jobs import JobStore
    from ea_runtime.serve.state import StateFolder, default_state_folder

    _check_devices(device, ray)
    loading = _check_loading(quantize, offload, device, ray)
    hosts = allowed_hosts(host, allowed_host or ())
    if token is not None:
        check_token_text(token)
    elif not is_loopback(host):
        import secrets

        token = secrets.token_urlsafe(32)
    catalogue = Catalogue(models or (), loras or ())
    folder = StateFolder(state or default_state_folder())
    _log_to_stderr(access_log)
    with folder.server_lock(), open_socket(host, port) as bound:
        store = JobStore(folder, max_queued=max_queue, max_per_client=max_per_client)
        plugins = [word.removeprefix("--plugin=") for word in context.obj if word.startswith("--plugin=")]
        settings = Settings(device, models or (), loras or (), plugins, loading=loading)
        crew = _make_crew(store, settings, ray)
        access = Access(token, hosts)
        service = Service(store, folder, catalogue, access=access, workers=crew.workers, loading=loading)
        announce = _announcement(bound.getsockname(), token, folder.root, browser)
        if ray is not None:
            crew.start()  # joins the cluster, which may fail

        def on_ready() -> None:
            announce()
            if ray is None:
                crew.start()  # after the first answer: workers that import torch take the processor

        try:
            make_server(App(service), on_ready).run(sockets=[bound])
        finally:
            crew.drain(_DRAIN)


def _make_crew(store: JobStore, settings: Settings, ray: str | None) -> Supervisor | RayWorkers:
    """The workers: processes of this machine, or actors of a Ray cluster."""
    if ray is None:
        from ea_runtime.serve.supervisor import Supervisor

        return Supervisor(store, settings)
    from ea_runtime.serve.ray_workers import RayWorkers

    return RayWorkers(store, settings, address=ray)


def _check_devices(devices: list[str] | None, ray: str | None) -> None:
    """Raises UserError for a device that has no such name, or is there twice, or on a cluster."""
    from ea_runtime.errors import UserError

    for one in devices or ():
        if not _DEVICE.fullmatch(one):
            raise UserError(f"`device` must be cpu, cuda, cuda:N or mps, got {one[:40]!r}")
    if devices and len({one.replace("cuda:0", "cuda") for one in devices}) != len(devices):
        raise UserError(f"`device` must be given once for each, got {', '.join(devices)}")
    if devices and ray is not None:
        raise UserError(
            "`device` is for workers on this machine; a cluster has its own: leave out --device or --ray"
        )


def _check_loading(
    quantize: str | None, offload: str | None, devices: list[str] | None, ray: str | None
) -> Loading:
    """The form in which workers hold models. Raises UserError for what no worker could load."""
    from ea_runtime.generation.offload_modes import AUTO, check_mode
    from ea_runtime.models.gguf_header import read_gguf
    from ea_runtime.models.quantize import Quantize, check_engine, check_packages, parse_quantize
    from ea_runtime.planning.room import find_room
    from ea_runtime.serve.crew import Loading

    forms, mode = parse_quantize(quantize), offload or AUTO
    if ray is not None:
        kinds = {"cuda"}  # each worker knows its own device
    else:
        kinds = {one.partition(":")[0] for one in devices or ()} or {find_room().kind}
    for kind in sorted(kinds):
        check_mode(mode, kind)
    check_engine("torch", forms, None, "none" if mode == AUTO else mode)
    if forms is None:
        return Loading(None, mode)
    if ray is None:
        check_packages(forms)
    if forms.gguf is not None:
        read_gguf(forms.gguf)
        forms = Quantize(forms.kinds, forms.gguf.absolute())
    return Loading(forms.text, mode)


def _require_extra() -> None:
    """Raises MissingPackageError if a package of the extra is missing."""
    from importlib.util import find_spec

    from ea_runtime.errors import MissingPackageError

    missing = [package for module, package in _EXTRA.items() if find_spec(module) is None]
    if missing:
        raise MissingPackageError(
            f"`ea serve` needs {', '.join(missing)}; install with: pip install 'ea-runtime[serve]'"
        )


def _log_to_stderr(access_log: bool) -> None:
    """Warnings of the server and, if asked for, its requests, each one line on stderr."""
    logging.getLogger("ea.serve").setLevel(logging.INFO if access_log else logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _announcement(address: Any, token: str | None, folder: Path, browser: bool) -> Callable[[], None]:
    """Prints where the page is, and opens it."""
    url = f"http://{_shown_host(address[0])}:{address[1]}/" + (f"?token={token}" if token else "")

    def announce() -> None:
        typer.echo(f"ea serve: {url}")
        typer.echo(f"jobs and results: {folder}; Ctrl-C stops, and the next start continues")
        sys.stdout.flush()
        if browser and _has_display():
            import threading
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    return announce


def _shown_host(bound: str) -> str:
    """The bound address as a browser takes it; for "all addresses" the one that other machines reach."""
    import socket

    from ea_runtime.serve.http.access import host_name, is_wildcard

    if is_wildcard(bound):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # sends nothing: asks which of our addresses would be used
                bound = probe.getsockname()[0]
            except OSError:
                bound = "127.0.0.1"
    return host_name(bound)


def _has_display() -> bool:
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
