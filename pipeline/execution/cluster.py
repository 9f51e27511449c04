"""A Ray: connecting to one, what it has room for, noticing that it is dead, and what it says in our words."""

import logging
import math
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import worker

from kintsugi.errors import JobError
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.sieve import without_texts_of_ray
from kintsugi.pipeline.job import Job

POLL_SECONDS = 0.5
DEAD_SECONDS = 10.0  # for calls into a Ray that is dead to return
VITAL = ("raylet", "gcs_server")  # processes of a Ray without which it does nothing
GOES_ON = "the same command continues"
OURS = {
    "low on memory": "Ray ended the worker, as its node ran out of memory",
    "node": "the worker's node is lost",
    "unavailable": "the worker cannot be reached",
    "never ran": "the worker never started",
    "": "the worker's process died",
}
"""What is in Ray's sentences on deaths, and what we say."""
SOCKET_NAME = 107  # bytes of the path of a socket at most
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_{process}/sockets/plasma_store"  # Ray's longest name
IDENTIFIER = re.compile(r" ?(\b[0-9a-f]{16,}\b|(ipv[46]:)?\b\d+(\.\d+){3}(:\d+)?\b|rpc_code: \d+)")
FIELD = re.compile(r"(class_name|actor_id|pid|name|namespace|ip): ")  # a line of Ray's texts


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster at `address`, or to a local one that ends with the job."""
    if ray.is_initialized():  # the caller's own connection: used and left as it is
        yield
        return
    local = address in (None, "local")
    connection = False
    worker.print_to_stdstream = lambda *_, **__: None  # Ray's own texts on deaths
    where = "the local Ray cannot start" if local else f"--address {address}: no connection to this Ray"
    if local:
        refuse_long_folder()
    if local and not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        # Ray's ports listen on all interfaces, and whoever has the token runs code here. Ray would make one
        # and leave it in the home directory, readable to everybody; this one ends with the process.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with without_texts_of_ray():
        handler = signal.getsignal(signal.SIGTERM)
        ending, over = threading.Event(), threading.Event()
        if local:
            threading.Thread(target=leave_dead_ray, args=(ending, over), daemon=True).start()
        try:
            ray.init(
                address="local" if local else address,
                include_dashboard=False if local else None,
                logging_level=logging.CRITICAL,
                log_to_driver=False,
            )
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray's own, which it has put there, ends the process
            connection = True
            yield
        except Exception as error:
            if connection:
                raise
            # Bare ones among them, where a node is not there in time.
            raise JobError(f"{where}: {sentence(str(error))}; {GOES_ON}") from error
        finally:
            ending.set()
            ray.shutdown()
            over.set()


def own_ray() -> Any | None:
    """The node of the Ray that this process has started, None if it uses another's."""
    node = worker._global_node
    return node if node is not None and node.is_head() else None


def refuse_dead_ray() -> None:
    """Raise a JobError where this process has started a Ray and it has died: no node of it comes back.

    Ray itself says nothing of it, or after a minute.
    """
    node = own_ray()
    for kind, _ in node.dead_processes() if node is not None else ():
        if kind in VITAL:
            raise JobError(dead_ray(kind))


def dead_ray(kind: str) -> str:
    """The message for a local Ray of which a process of this kind is gone."""
    return f"the local Ray has ended: its process {kind} is gone; {GOES_ON}"


def leave_dead_ray(ending: threading.Event, over: threading.Event) -> None:
    """End this process if its Ray is dead and the main thread does not end it, as it waits for Ray.

    Args:
        ending: set before Ray is ended here, whose processes then die. over: after it.
    """
    seen: dict[int, str] = {}
    while not ending.wait(POLL_SECONDS):
        there = vital_children()
        seen |= there
        gone = next((kind for process, kind in seen.items() if process not in there), None)
        if gone is not None and not over.wait(DEAD_SECONDS):
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # which the display has hidden
            print(f"{cursor}error: {dead_ray(gone)}", file=sys.stderr, flush=True)
            os._exit(1)


def vital_children() -> dict[int, str]:
    """Processes of a Ray that are living children of this one, also while Ray starts; {} off Linux."""
    found = {}
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                name, _, state = Path(f"/proc/{child}/stat").read_text().partition("(")[2].rpartition(")")
                if name in VITAL and state.split()[0] not in "ZX":
                    found[int(child)] = name
    return found


def refuse_long_folder() -> None:
    """Raise a JobError if the names of Ray's sockets would be longer than the system allows."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    folder = os.environ[name] if name else "/tmp"
    if (length := len(os.fsencode(folder + SOCKET.format(process=os.getpid())))) > SOCKET_NAME:
        raise JobError(
            f"--address local: the names of Ray's sockets would have {length} bytes in {name}={folder}, and "
            f"{SOCKET_NAME} are the most; set RAY_TMPDIR to a short folder of this machine, such as /tmp, or "
            "use --address none"
        )


def nodes() -> list[dict[str, float]]:
    """The resources of each living node of the Ray that is connected, {"CPU": 96, "GPU": 8}.

    Raises:
        JobError: the local Ray counts its own as dead.
    """
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not found and own_ray() is not None:
        raise JobError(f"the local Ray counts its only node as dead, as after a long sleep; {GOES_ON}")
    return found


@dataclass(frozen=True)
class ActorSize:
    """What each actor asks for."""

    cpus: float
    gpus: float


def actor_size(job: Job, nodes: list[dict[str, float]], live: Live) -> ActorSize:
    """What each actor asks of a cluster with these nodes.

    Args:
        nodes: resources of each node, {"CPU": 96, "GPU": 8}.

    Raises:
        JobError: not one actor fits.
    """
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    wanted = job.compute.gpus_per_actor
    if wanted and not gpus:
        live.notes.append(f"no GPU in the cluster: running on {cpus:g} CPU cores")
        wanted = 0.0
    if wanted:
        places = [(node.get("CPU", 0.0), math.floor(node.get("GPU", 0.0) / wanted)) for node in nodes]
        # All the GPUs of a node are used, even if each actor then gets fewer cores than it asked for.
        share = min((c / n for c, n in places if n), default=0.0)
    else:
        share = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    size = ActorSize(
        min(float(job.compute.cpus_per_actor), share if share < 1 else math.floor(share)), wanted
    )
    if capacity(size, nodes) == 0:
        raise JobError(
            f"compute: no node holds an actor of {wanted:g} GPUs (gpus_per_actor); the cluster has "
            f"{gpus:g} GPUs and {cpus:g} CPU cores on {len(nodes)} nodes"
        )
    return size


def actor_device(size: ActorSize) -> str:
    """The device of actors of a size, as torch names it."""
    return "cuda" if size.gpus else "cpu"


def capacity(size: ActorSize, nodes: list[dict[str, float]]) -> int:
    """How many actors fit on the nodes."""

    def on(node: dict[str, float]) -> int:
        kinds = [("CPU", size.cpus), ("GPU", size.gpus)]
        return min((math.floor(node.get(kind, 0.0) / each) for kind, each in kinds if each), default=0)

    return sum(map(on, nodes))


def reason(error: Exception) -> str:
    """What a worker raised, or how it died, in one sentence.

    Ray's own texts are a page long. Identifiers and addresses are left out, as rows may hold what is
    returned here, and must not differ between two executions.
    """
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    texts = [line for line in lines if not FIELD.match(line)]
    text = next(
        (line for line in texts if "low on memory" in line), texts[-1] if texts else "the worker died"
    )
    if text.startswith(("The ", "Task ")):  # Ray's; else the last line of a traceback
        return next(ours for theirs, ours in OURS.items() if theirs in sentence(text))
    return f"{type(error).__name__}: {text}"


def sentence(text: str) -> str:
    """The first sentence of a text of Ray's, without identifiers and addresses."""
    return IDENTIFIER.sub("", re.split(r"[.;]\s", text.strip())[0].removesuffix("."))
