"""A server without HTTP: a supervisor over a state folder, to be killed; run as a program.

    python driver.py STATE SAVE_FIRST SAVE_EVERY

Prints "started" once it has the folder, then "worker PID" for each worker that it starts. Ends when its standard input
does, as a server that is asked to stop: drained.
"""

from __future__ import annotations

import logging
import sys
import threading
import time

from ea_runtime.serve.jobs import JobStore
from ea_runtime.serve.state import StateFolder
from ea_runtime.serve.supervisor import Settings, Supervisor


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    state = StateFolder(sys.argv[1])
    with state.server_lock():
        say("started")
        settings = Settings(devices=["cpu"], save_first=float(sys.argv[2]), save_every=float(sys.argv[3]))
        supervisor = Supervisor(JobStore(state), settings)
        supervisor.start()
        threading.Thread(target=watch, args=(supervisor,), daemon=True).start()
        sys.stdin.read()
        supervisor.drain(30.0)


def watch(supervisor: Supervisor) -> None:
    """Prints each new worker's process."""
    last: int | None = None
    while True:
        pid = supervisor._keepers[0].pid
        if pid is not None and pid != last:
            last = pid
            say(f"worker {pid}")
        time.sleep(0.01)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
