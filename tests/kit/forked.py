"""Workers of Ray forked from a process that has imported what they need, and share its memory.

64 processes that import torch each take 23 GiB and three minutes of CPU; forked ones are as Ray starts them
in all else. `Forks` has the process that they are forked from. This file, run as a script, is that process,
or what Ray starts in the place of a worker: it asks for a fork, and ends when this ends.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

SOCKET = "KINTSUGI_FORKS"  # environment: where the process listens
SETUP = ("--language", "--serialized-runtime-env-context")  # arguments for Ray's own script of this place


class Forks:
    """A process that forks workers while it is entered. `node`: arguments of a node that has such workers."""

    def __init__(self) -> None:
        self.node = {"setup_worker_path": __file__}

    def __enter__(self) -> "Forks":
        self.folder = tempfile.TemporaryDirectory()
        os.environ[SOCKET] = str(Path(self.folder.name) / "forks")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.environ[SOCKET])
            listening.listen(1024)
            descriptor = listening.fileno()
            command = [sys.executable, __file__, str(descriptor)]
            self.process = subprocess.Popen(command, pass_fds=[descriptor])
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        del os.environ[SOCKET]
        self.folder.cleanup()


def serve(listening: socket.socket) -> None:
    """Fork a worker for everyone who asks."""
    import gc

    from PIL import Image

    import kintsugi.pipeline.execution.workplace  # noqa: F401

    Image.init()  # which imports a module for each format
    assert "ray" not in sys.modules, "it reads the environment of a worker when it is imported"
    gc.collect()
    gc.freeze()  # else every worker's first collection copies all
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening.settimeout(1.0)
    parent = os.getppid()
    while os.getppid() == parent:  # else who has started it was killed
        with suppress(TimeoutError):
            asking, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                work(asking)
            asking.close()


def work(asking: socket.socket) -> None:
    """Be the worker that is asked for. The connection ends with the process."""
    told = json.loads(asking.makefile().readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.nice(told["nice"] - os.nice(0))
    os.chdir(told["folder"])
    sys.argv = told["arguments"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        os._exit(0)


def ask() -> None:
    """Ask for a worker, and wait for its end."""
    told = {
        "arguments": [one for one in sys.argv[1:] if not one.startswith(SETUP)],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "nice": os.nice(0),
    }
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(os.environ[SOCKET])
        asking.sendall(f"{json.dumps(told)}\n".encode())
        asking.recv(1)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(socket.socket(fileno=int(sys.argv[1])))
    ask()
