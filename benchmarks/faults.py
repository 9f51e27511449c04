"""What faults do to a job: every fault on every executor, or at random for as long as one likes.

    python benchmarks/faults.py matrix
    python benchmarks/faults.py soak --minutes 30 --seed 1
    python benchmarks/faults.py chaos --runs 100 --seed 1

The command is `kintsugi run` on 24 small images in 8 units; a pause of 0.2 s for each stands for the network.
It meets a fault at a random point, and is given again until it ends with 0. The result is compared with that
of an undisturbed run: rows, bytes, files. Clusters of several nodes are on this machine
(ray.cluster_utils.Cluster): a head without actors, where the driver is, and two nodes with one CPU each.
Disks are mounted in a namespace of the benchmark's own. Two times are shortened, as all would take long:
an actor counts as frozen after 10 s without an answer (120), and a spot node ends 1 s after notice (120).
"""

import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from kit import faults
from kit.faults import MOUNTED, NAMESPACE, SIGNALS, VICTIMS, Chaos, Disk, Outcome, descendants, tell
from kit.plugins import know_stand_ins

FROZEN = 10.0  # seconds without an answer
NOTICE = 1.0  # seconds from the notice of a spot node to its end
PAUSE = 0.2  # seconds per image
SHARDS, PER_SHARD, UNIT = 2, 12, 3
COMMANDS = 4  # at most, for one run
STUCK = 300  # seconds after which a command counts as hanging

IN_PROCESS, ONE_NODE, NODES = "in process", "Ray, one node", "Ray, several nodes"
DRIVER, ACTOR = "kill −9 of the driver", "kill −9 of an actor"
RAYLET, NODE = "kill −9 of a raylet", "kill −9 of a node"
FROZEN_WORKER, FROZEN_NODE = "a worker freezes, wakes up late", "a node freezes, wakes up late"
SIGTERM, CTRL_C, DRAINED, JOINS = "SIGTERM", "Ctrl-C twice", "a spot node is drained", "a node joins"
FAULTS = (
    *(DRIVER, ACTOR, RAYLET, NODE, FROZEN_WORKER, FROZEN_NODE),
    *(*MOUNTED, CTRL_C, SIGTERM, DRAINED, JOINS),
)
FORKED = {
    DRIVER: "kill -9",
    FROZEN_WORKER: "frozen, wakes up late",
    CTRL_C: "Ctrl-C twice",
    SIGTERM: "SIGTERM",
}
"""What the faults are called in tests/faults.py."""
WHY_NOT = {
    **{(fault, IN_PROCESS): "one process is all there is" for fault in (ACTOR, RAYLET, NODE)},
    **{(fault, IN_PROCESS): "one process is all there is" for fault in (FROZEN_NODE, DRAINED, JOINS)},
    (FROZEN_NODE, ONE_NODE): "the driver freezes with it, and all go on when it wakes up",
    (DRAINED, ONE_NODE): "the driver goes with its only node, as with kill −9 of a node",
    (JOINS, ONE_NODE): "it is then several nodes",
}

app = typer.Typer(help=__doc__, rich_markup_mode=None, add_completion=False)


# ---- a cluster and its commands


def tree(process: int) -> list[int]:
    return [process, *(child for child, _ in descendants(process))]


class Rays:
    """A Ray cluster on this machine, made anew where a fault has taken it, and commands that use it.

    Attributes:
        calm: an undisturbed run. seconds: it took from start to end.
    """

    def __init__(self, base: Path, executor: str):
        self.base, self.executor, self.several = base, executor, executor == NODES
        base.mkdir()
        self.log, self.calm, self.seconds = base / "log", base / "calm", nan
        self.shards = faults.write_shards(base / "shards", SHARDS, PER_SHARD)
        self.cluster: Any = None
        self.build()

    def build(self) -> None:
        from ray.cluster_utils import Cluster

        self.close()
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0 if self.several else 2})
        self.complete()

    def complete(self) -> None:
        """Have two nodes beside the head, where there are several, and none that are gone."""
        for node in list(self.cluster.worker_nodes):
            if not alive(raylet(node)):
                with suppress(Exception):
                    self.cluster.remove_node(node, allow_graceful=False)
                self.cluster.worker_nodes.discard(node)
        while self.several and len(self.cluster.worker_nodes) < 2:
            self.cluster.add_node(num_cpus=1)

    def close(self) -> None:
        if self.cluster is not None:
            left = [process for node in self.cluster.list_all_nodes() for process in processes(node)]
            with suppress(Exception):
                self.cluster.shutdown()
            tell(signal.SIGKILL, *left)

    @property
    def nodes(self) -> list[Any]:
        """Those with actors."""
        return list(self.cluster.worker_nodes) if self.several else [self.cluster.head_node]

    def actors(self) -> list[int]:
        """Processes, those with a node that is still known."""
        return [
            process
            for node in self.nodes
            for process, name in descendants(raylet(node))
            if name.startswith("ray::RayWorker")
        ]

    def job(self, output: Path) -> Path:
        prior = {"name": "gaussian", "pause": PAUSE}
        file = self.base / f"{output.name}.yaml"
        return faults.write_job(file, self.shards, output, prior, batch_size=1, unit_size=UNIT)

    def start(self, job: Path) -> subprocess.Popen[bytes]:
        """The command, in a session of its own."""
        command = [*faults.PROGRAM, "kintsugi", "run", str(job)]
        address = ["--address", self.cluster.address]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*command, *address], stdout=log, stderr=log, start_new_session=True, env=environment()
            )

    def make_calm(self) -> None:
        began = time.monotonic()
        assert self.start(self.job(self.calm)).wait(STUCK) == 0, self.log.read_text()
        self.seconds = time.monotonic() - began

    def storm(self, output: Path, fault: str, rng: np.random.Generator) -> Outcome:
        """A run that meets a fault, and is continued until it is complete."""
        self.log.unlink(missing_ok=True)
        this = Struck(self, output, fault, rng)
        if fault == JOINS:
            self.cluster.remove_node(self.nodes[0])
        output.parent.parent.mkdir(exist_ok=True)
        disk = Disk(output.parent) if fault in MOUNTED else output.parent.mkdir()
        this.go(disk)
        if this.outcome.complete:
            this.outcome.compare(output, self.calm)
        if not this.outcome.clean:
            this.outcome.log = self.log.read_text()
        if disk is not None:
            disk.remove()
        self.complete()
        return this.outcome


def environment() -> dict[str, str]:
    return os.environ | {"KINTSUGI_FROZEN_SECONDS": str(FROZEN), "OMP_NUM_THREADS": "1"}


def raylet(node: Any) -> int:
    (found,) = node.all_processes.get("raylet", [None])
    return 0 if found is None else int(found.process.pid)


def processes(node: Any) -> list[int]:
    """All of a node: the raylet, its workers, and what belongs to it beside them."""
    started = [each.process.pid for found in node.all_processes.values() for each in found]
    return [process for root in started for process in tree(root)]


def alive(process: int) -> bool:
    with suppress(OSError, IndexError):
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return process > 0 and state not in "ZX"
    return False


@dataclass
class Struck:
    """One run on Ray and its fault.

    Attributes:
        afterwards: what is still to be done when the command has ended, before it is given again.
        sleepers: processes that are frozen, and when they wake up.
    """

    rays: Rays
    output: Path
    fault: str
    rng: np.random.Generator
    afterwards: list[Callable[[], None]] = field(default_factory=list)
    sleepers: list[threading.Timer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.rays.executor, [self.fault])

    def go(self, disk: Disk | None) -> None:
        job = self.rays.job(self.output)
        driver = self.rays.start(job)
        self.wait_for_the_point(driver)
        self.outcome.began = time.monotonic()
        self.strike(driver, disk)
        self.settle(driver)
        while not self.outcome.complete and len(self.outcome.codes) < COMMANDS:
            self.settle(self.rays.start(job))
        self.outcome.ended = time.monotonic()
        for sleeper in self.sleepers:
            sleeper.join()
        if self.sleepers:
            time.sleep(3 * PAUSE * UNIT)  # for what they write when they are awake

    def wait_for_the_point(self, driver: subprocess.Popen[bytes]) -> None:
        after = int(self.rng.integers(0, SHARDS * PER_SHARD // UNIT - 2))
        while driver.poll() is None:
            if len(list(self.output.glob("commits/*.json"))) >= after and self.rays.actors():
                break
            time.sleep(0.01)
        time.sleep(self.rng.uniform(0, PAUSE * UNIT))

    def settle(self, driver: subprocess.Popen[bytes]) -> None:
        try:
            self.outcome.codes.append(driver.wait(STUCK))
        except subprocess.TimeoutExpired:
            tell(signal.SIGKILL, driver.pid)
            self.outcome.codes.append(driver.wait())
            self.outcome.findings.append(f"the command did not end within {STUCK} s")
        for act in self.afterwards:
            act()
        self.afterwards.clear()

    def strike(self, driver: subprocess.Popen[bytes], disk: Disk | None) -> None:
        rays, rng = self.rays, self.rng
        node = self.busy_node()
        if self.fault == DRIVER:
            tell(signal.SIGKILL, driver.pid)
        elif self.fault == SIGTERM:
            tell(signal.SIGTERM, driver.pid)
        elif self.fault == CTRL_C:
            tell(signal.SIGINT, driver.pid)
            time.sleep(rng.uniform(0, PAUSE * UNIT))
            tell(signal.SIGINT, driver.pid)
        elif self.fault == ACTOR:
            tell(signal.SIGKILL, int(rng.choice(rays.actors() or [driver.pid])))
        elif self.fault == FROZEN_WORKER:
            self.freeze([int(rng.choice(rays.actors() or [driver.pid]))])
        elif self.fault == FROZEN_NODE:
            self.freeze(processes(node))
        elif self.fault == RAYLET:
            tell(signal.SIGKILL, raylet(node))
        elif self.fault == NODE:
            tell(signal.SIGKILL, *processes(node), *([] if rays.several else [driver.pid]))
        elif self.fault == DRAINED:
            self.drain(node)
        elif self.fault == JOINS:
            rays.cluster.add_node(num_cpus=1)
        elif disk is not None:
            self.break_disk(disk)
        if self.fault in (RAYLET, NODE) and not rays.several:
            self.afterwards.append(rays.build)

    def busy_node(self) -> Any:
        """Some node, if possible one with an actor."""
        nodes = self.rays.nodes
        busy = [n for n in nodes if any("RayWorker" in name for _, name in descendants(raylet(n)))]
        return (busy or nodes)[int(self.rng.integers(len(busy or nodes)))]

    def freeze(self, processes: list[int]) -> None:
        tell(signal.SIGSTOP, *processes)
        late = FROZEN + self.rng.uniform(1, 8)
        self.sleepers.append(threading.Timer(late, tell, (signal.SIGCONT, *processes)))
        self.sleepers[-1].start()

    def drain(self, node: Any) -> None:
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int((time.time() + NOTICE) * 1000)
        client = GcsClient(address=self.rays.cluster.address)
        accepted, why = client.drain_node(node.node_id, reason, "spot", deadline)
        assert accepted, why
        time.sleep(NOTICE)
        tell(signal.SIGKILL, *processes(node))

    def break_disk(self, disk: Disk) -> None:
        """For a moment, or until the command has given up."""
        happen, mend = MOUNTED[self.fault]
        happen(disk)
        if self.rng.random() < 0.5:
            time.sleep(self.rng.uniform(0, 2))
            mend(disk)
            return

        def afterwards() -> None:
            if self.fault == "mount lost":
                self.outcome.stray += [f"beneath: {name}" for name in sorted(faults.files(disk.folder))]
            mend(disk)

        self.afterwards.append(afterwards)


# ---- in a place of its own


def isolate() -> str | None:
    """Go on in a mount namespace of this process's own; returns why there is none."""
    if os.environ.get("KINTSUGI_ISOLATED"):
        return None
    if (why := faults.why_no_mounts()) is None:
        sys.stdout.flush()
        os.environ["KINTSUGI_ISOLATED"] = "1"
        os.execvp(NAMESPACE[0], [*NAMESPACE, sys.executable, *sys.argv])
    return why


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for runs and for Ray, so that no other cluster of this machine is met."""
    with tempfile.TemporaryDirectory(prefix="kf-", ignore_cleanup_errors=True) as name:
        os.environ |= {
            "RAY_TMPDIR": name,
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_worker_niceness": "0",  # else actors starve beside other processes
        }
        yield Path(name)


@contextmanager
def rays(base: Path, executor: str) -> Iterator[Rays]:
    found = Rays(base, executor)
    try:
        found.make_calm()
        yield found
    finally:
        found.close()


# ---- commands


@app.command()
def matrix(
    seed: Annotated[int, typer.Option()] = 0,
    in_process: Annotated[int, typer.Option(help="Runs of each fault in process.")] = 10,
    on_ray: Annotated[int, typer.Option(help="Runs of each fault on each kind of cluster.")] = 2,
) -> None:
    """Every fault on every executor; prints a table."""
    no_mounts = isolate()
    found: dict[tuple[str, str], list[Outcome]] = {}
    calm: dict[str, float] = {}

    def note(fault: str, executor: str, outcome: Outcome) -> None:
        found.setdefault((fault, executor), []).append(outcome)
        took = outcome.ended - (outcome.began or nan)
        progress(f"{executor}: {fault}: {outcome.codes} {took:.1f} s")
        if not outcome.clean:
            progress(f"not clean: {outcome}\n{outcome.log}")

    try:
        with workplace() as folder:
            (folder / "forked").mkdir()
            know_stand_ins()
            forked = faults.Forked(folder / "forked")
            calm[IN_PROCESS] = forked.seconds
            for place, fault in enumerate(FAULTS):
                for number in range(in_process):
                    rng = np.random.default_rng([seed, place, number])
                    output = forked.base / f"{place}-{number}" / f"run-{place}-{number}"
                    if fault in FORKED:
                        note(fault, IN_PROCESS, forked.storm(output, [FORKED[fault]], rng))
                    elif fault in MOUNTED and no_mounts is None:
                        note(fault, IN_PROCESS, forked.on_disk(output, fault, rng))
            for number in range(on_ray):  # all faults once, then again: it may be ended when one likes
                for kind, executor in enumerate((ONE_NODE, NODES)):
                    with rays(folder / f"rays-{kind}-{number}", executor) as cluster:
                        calm.setdefault(executor, cluster.seconds)
                        for place, fault in enumerate(FAULTS):
                            if (fault, executor) not in WHY_NOT and not (fault in MOUNTED and no_mounts):
                                rng = np.random.default_rng([seed, place, number, kind])
                                output = cluster.base / f"{place}" / f"run-{place}"
                                note(fault, executor, cluster.storm(output, fault, rng))
    except KeyboardInterrupt:
        print("ended by Ctrl-C; as far as it came:")
    print_table(found, calm, no_mounts)
    if not all(outcome.clean for outcomes in found.values() for outcome in outcomes):
        raise typer.Exit(1)


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


COLUMNS = (
    *("fault", "executor", "runs", "rows lost", "rows doubled", "bytes different", "stray files"),
    *("exit codes", "seconds to recover", "undisturbed run, s"),
)


def print_table(
    found: dict[tuple[str, str], list[Outcome]], calm: dict[str, float], no_mounts: str | None
) -> None:
    """One row for every fault on every executor, and below it why some are empty."""
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    reasons: dict[str, list[str]] = {}
    for fault in FAULTS:
        for executor in (IN_PROCESS, ONE_NODE, NODES):
            outcomes = found.get((fault, executor), [])
            cells = ["–"] * (len(COLUMNS) - 2)
            if outcomes:
                cells = figures(outcomes, calm[executor])
            else:
                why = WHY_NOT.get((fault, executor), "not run")
                if fault in MOUNTED and no_mounts is not None:
                    why = f"nothing can be mounted here: {no_mounts}"
                reasons.setdefault(f"{executor}: {why}", []).append(fault)
            print(f"| {fault} | {executor} | {' | '.join(cells)} |")
    print()
    for why, without in reasons.items():
        print(f"– {', '.join(without)}; {why}.")


def figures(outcomes: list[Outcome], calm: float) -> list[str]:
    took = [outcome.ended - outcome.began for outcome in outcomes if outcome.began is not None]
    codes = {code for outcome in outcomes for code in outcome.codes}

    def total(part: str) -> str:
        return str(sum(getattr(outcome, part) for outcome in outcomes))

    return [
        str(len(outcomes)),
        *map(total, ("lost", "doubled", "different")),
        str(sum(len(outcome.stray) for outcome in outcomes)),
        ", ".join(str(code).replace("-", "−") for code in sorted(codes)),
        f"{statistics.median(took):.1f}" if took else "–",
        f"{calm:.1f}",
    ]


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(help="How long.")] = 30.0,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Random faults until the time is up; exit code 1 at the first outcome that is not clean."""
    no_mounts = isolate()
    ends = time.monotonic() + 60 * minutes
    rng = np.random.default_rng(seed)
    tally: Tally = Counter()
    try:
        with workplace() as folder:
            know_stand_ins()
            for turn in range(sys.maxsize):
                if time.monotonic() > ends:
                    break
                turns(folder / str(turn), rng, ends, no_mounts, tally)
    except KeyboardInterrupt:
        print("ended by Ctrl-C")
    finally:
        print("| executor | fault | clean |\n|---|---|---|")
        for (executor, fault), times in sorted(tally.items()):
            print(f"| {executor} | {fault} | {times} |")
        print(f"{sum(tally.values())} runs, all clean" if tally else "no runs")


Tally = Counter[tuple[str, str]]
"""Clean runs by executor and fault."""


def turns(folder: Path, rng: np.random.Generator, ends: float, no_mounts: str | None, tally: Tally) -> None:
    """Some runs on one executor."""

    def count(outcome: Outcome) -> None:
        if not outcome.clean:
            print(f"{outcome}\n{outcome.log}")
            raise typer.Exit(1)
        tally.update((outcome.executor, fault) for fault in outcome.faults)

    executor = str(rng.choice([IN_PROCESS, ONE_NODE, NODES]))
    progress(executor)
    if executor == IN_PROCESS:
        # In another process, as one with Ray in it cannot be forked.
        folder.mkdir()
        options = ["--runs", "12", "--seed", str(rng.integers(1 << 30)), "--disks", "0" if no_mounts else "1"]
        command = [*faults.PROGRAM, "storm", str(folder), *options]
        subprocess.run(command, check=True, start_new_session=True)
        for outcome in json.loads((folder / "outcomes.json").read_text()):
            count(Outcome(**outcome))
        return
    possible = [f for f in FAULTS if (f, executor) not in WHY_NOT and not (f in MOUNTED and no_mounts)]
    with rays(folder, executor) as cluster:
        for number in range(5):
            if time.monotonic() > ends:
                return
            fault = str(rng.choice(possible))
            outcome = cluster.storm(folder / str(number) / f"run-{number}", fault, rng)
            progress(f"{executor}: {fault}: {outcome.codes}")
            count(outcome)


@app.command()
def chaos(
    runs: Annotated[int, typer.Option(help="How many, each on a Ray of its own.")] = 100,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """SIGKILL, SIGSTOP and SIGCONT at random to driver, workers, raylet and gcs; prints a table."""
    outcomes: list[Outcome] = []
    try:
        with tempfile.TemporaryDirectory(prefix="kf-", ignore_cleanup_errors=True) as folder:
            know_stand_ins()
            executor = Chaos(Path(folder))
            for number in range(runs):
                rng = np.random.default_rng([seed, number])
                strikes = faults.schedule(rng, executor.units)
                # One in four goes on with Ray; the others without, which takes a third of the time.
                outcome = executor.run(f"{number:03d}", strikes, "local" if rng.random() < 0.25 else "none")
                outcomes.append(outcome)
                took = outcome.ended - (outcome.began or nan)
                progress(f"{number}: {', '.join(outcome.faults)}: {outcome.codes} {took:.1f} s")
                if not outcome.clean:
                    progress(f"not clean: {outcome}\n{outcome.log}")
    except KeyboardInterrupt:
        print("ended by Ctrl-C; as far as it came:")
    columns = ("signal", "victim", "times", "lost", "doubled", "different", "hangs", "not clean", "seconds")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for number in SIGNALS:
        for victim in VICTIMS:
            met = [o for o in outcomes if f"{number.name} {victim}" in o.faults]
            times = sum(o.faults.count(f"{number.name} {victim}") for o in met)
            parts = [sum(getattr(o, part) for o in met) for part in ("lost", "doubled", "different", "hangs")]
            took = f"{statistics.median(o.ended - (o.began or nan) for o in met):.0f}" if met else "–"
            figures = (times, *parts, sum(not o.clean for o in met), took)
            print(f"| {number.name} | {victim} | {' | '.join(map(str, figures))} |")
    bad = sum(not outcome.clean for outcome in outcomes)
    print(f"{len(outcomes)} runs, {bad} not clean, {sum(not o.faults for o in outcomes)} without a strike")
    if bad:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
