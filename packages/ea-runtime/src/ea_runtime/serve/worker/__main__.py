"""The program of one worker, started by the supervisor."""

from __future__ import annotations

import argparse
import logging
import sys

from ea_runtime.errors import UserError
from ea_runtime.machine.allocator import tune_allocator
from ea_runtime.plugins.host import make_host, set_host
from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.crew import Loading
from ea_runtime.serve.jobs import JobStore
from ea_runtime.serve.state import LockTaken, StateFolder
from ea_runtime.serve.worker.stopping import Stop

READY = "ready"
#: exit code of a worker whose device is lost
DEVICE_LOST = 3


def main(argv: list[str] | None = None) -> int:
    """Runs a worker until it is stopped; returns the exit code: 0 stopped, 2 a wrong option, 3 its device is lost."""
    options = _parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("ea.serve").setLevel(logging.INFO)
    stop = Stop()
    stop.on_signals()
    stop.on_end_of_input()
    try:
        set_host(make_host(options.plugin))
        catalogue = Catalogue(options.models, options.loras)
        state = StateFolder(options.state)
        while not stop.is_set:
            try:
                with state.worker_lock(options.name, 0.2):
                    return _work(options, state, catalogue, stop)
            except LockTaken:
                continue  # one that a killed server left is saving its place
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _work(options: argparse.Namespace, state: StateFolder, catalogue: Catalogue, stop: Stop) -> int:
    store = JobStore(state)
    store.recover(options.name)
    tune_allocator()  # before torch is imported
    from ea_runtime.serve.worker.link import StoreLink
    from ea_runtime.serve.worker.loop import serve_jobs
    from ea_runtime.serve.worker.making_job import DeviceLost, JobMaker, Saving
    from ea_runtime.serve.worker.models import Models

    link = StoreLink(store, options.name)
    saving = Saving(options.save_first, options.save_every)
    loading = Loading(options.quantize, options.offload)
    make = JobMaker(link, Models(options.device, loading=loading), catalogue, stop, saving)
    try:
        serve_jobs(link, make, stop, _say_ready)
    except DeviceLost as error:
        sys.stderr.write(f"error: {error}\n")
        return DEVICE_LOST
    return 0


def _say_ready() -> None:
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ea_runtime.serve.worker", description=__doc__)
    parser.add_argument("--state", required=True, help="the state folder")
    parser.add_argument("--name", required=True, help="the worker's name, such as cuda0")
    parser.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:N or mps; the best available if left out"
    )
    parser.add_argument("--models", action="append", default=[], help="a folder of models; repeatable")
    parser.add_argument("--loras", action="append", default=[], help="a folder of LoRAs; repeatable")
    parser.add_argument("--plugin", action="append", default=[], help="a local plugin file; repeatable")
    parser.add_argument("--quantize", default=None, help="the form of the weights, as in `ea generate`")
    parser.add_argument("--offload", default="none", help="where weights wait, as in `ea generate`")
    parser.add_argument(
        "--save-first", type=float, default=30.0, help="seconds before a run's place is saved"
    )
    parser.add_argument("--save-every", type=float, default=30.0, help="seconds between two saves")
    return parser


if __name__ == "__main__":
    sys.exit(main())
