"""Faults, commands that go through them, and what became of their runs.

    python tests/faults.py storm FOLDER --runs 50 --seed 0
    python tests/faults.py kintsugi run JOB …

`storm` puts the in-process executor through faults at random points and writes FOLDER/outcomes.json, for
tests and benchmarks. It forks a child for every command after it has imported everything once: starting
Python a hundred times takes minutes, and a process with Ray cannot be forked.
`kintsugi` is the command itself, which has the stand-ins of kit/site as plug-ins.

Nothing is simulated that can be had. Signals are sent. An audit hook sees every operation on files of a run
before it happens, and there kills or stops its process, or raises the error that takes the operation's
place. Where a mount namespace can be had (`unshare`), disks are filled, made read-only and unmounted.
"""

import argparse
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from errno import EIO, ENOSPC, EROFS, ESTALE
from itertools import count
from math import inf, isnan, nan
from pathlib import Path
from shutil import rmtree
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from kit.plugins import know_stand_ins
from kit.shards import SIZE, encode, picture, write_tar

from kintsugi.jobs import cli
from kintsugi.pipeline.data.units import read_members
from kintsugi.pipeline.execution import crew, ledger
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.verify import Finding, verify

NAMESPACE = ("unshare", "--map-root-user", "--mount")  # before a command that mounts
PROGRAM = (sys.executable, str(Path(__file__).resolve().parents[1] / "faults.py"))
CHANGES = ("os.mkdir", "os.rename", "os.link", "os.remove")
TRACEBACK = 99  # exit code for an exception that nobody caught
NUMBER = struct.Struct("d")


# ---- what is run, and what must come out


def write_shards(folder: Path, shards: int, images: int) -> str:
    """Shards of so many images each; returns the pattern that stands for them."""
    for shard in range(shards):
        numbers = range(shard * images, (shard + 1) * images)
        write_tar(folder / f"set-{shard}.tar", [(f"image_{n:04d}.png", encode(picture(n))) for n in numbers])
    return f"{folder}/*.tar"


def write_job(
    file: Path, shards: str, output: Path, prior: dict[str, Any], steps: int = 1, **compute: Any
) -> Path:
    values = {
        "data": {"shards": shards, "size": SIZE},
        "degradation": {"operator": {"name": "average_pool", "factor": 4}, "sigma": 0.02},
        "prior": prior,
        "sampler": {"name": "conjugate", "steps": steps, "w": 15},
        "metrics": ["psnr"],
        "compute": {"batch_size": 2, "unit_size": 2, "cpus_per_actor": 1} | compute,
        "output": str(output),
    }
    file.write_text(yaml.safe_dump(values))
    return file


@dataclass
class Outcome:
    """What became of a run, compared with an undisturbed one.

    Attributes:
        codes: exit codes of its commands, negative for a signal.
        began, ended: when the first fault happened and when the result was complete, by time.monotonic.
        lost, doubled: rows. different: files in data/ whose bytes are others.
        hangs: commands that did not end. stray: files that an undisturbed run does not have.
        findings: of `verify`, and what was on the terminal and should not be.
        log: what the commands said, if anything was wrong.
    """

    executor: str
    faults: list[str]
    codes: list[int] = field(default_factory=list)
    began: float | None = None
    ended: float = nan
    lost: int = 0
    doubled: int = 0
    different: int = 0
    hangs: int = 0
    stray: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    log: str = ""

    @property
    def complete(self) -> bool:
        return bool(self.codes) and self.codes[-1] == 0

    @property
    def clean(self) -> bool:
        wrong = self.lost or self.doubled or self.different or self.hangs or self.stray or self.findings
        return self.complete and TRACEBACK not in self.codes and not wrong

    def compare(self, folder: Path, calm: Path) -> None:
        """Compare a run with an undisturbed one; rows are counted without the code under test."""
        planned = [
            key for unit in Run.open(calm).units() for key in read_members(calm / "plan.parquet", unit).keys
        ]
        found: Counter[str] = Counter()
        for file in (folder / "data").glob("*.parquet"):
            if (folder / "commits" / f"{file.stem}.json").exists():
                found.update(pq.read_table(file, columns=["key"])["key"].to_pylist())
        undisturbed, now = files(calm), files(folder)
        rows = {name for name in undisturbed if name.startswith("data/")}
        self.lost += sum(not found[key] for key in planned)
        self.doubled += sum(max(0, times - 1) for times in found.values())
        self.different += sum(
            name not in now or (folder / name).read_bytes() != (calm / name).read_bytes() for name in rows
        )
        self.stray += sorted(now - undisturbed)
        self.findings += [found.what for found in verify(Run.open(folder)) if isinstance(found, Finding)]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---- faults in a process, at an operation on a file

Spring = Callable[[int, str, tuple[Any, ...]], None]
"""Called at the operation where a fault begins, and at those after it: 0, 1, …; the event, its arguments."""


class Trap:
    """An audit hook that counts the operations on files below a folder, and springs at one of them."""

    def __init__(self, below: Path, at: int | None = None, spring: Spring = lambda *_: None):
        self.below, self.at, self.spring = f"{below}/", at, spring
        self.shared = mmap.mmap(-1, 2 * NUMBER.size)  # with the process that forks
        NUMBER.pack_into(self.shared, 0, nan)
        self.numbers = count()
        self.springing = False

    @property
    def sprung(self) -> float | None:
        """When, by time.monotonic."""
        (when,) = NUMBER.unpack_from(self.shared)
        return None if isnan(when) else when

    @property
    def operations(self) -> int:
        """So far."""
        return int(*NUMBER.unpack_from(self.shared, NUMBER.size))

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not event.startswith(("open", "os.")) or self.springing:
            return
        paths = (os.fspath(a) for a in arguments[:2] if isinstance(a, str | os.PathLike))
        if not any(str(path).startswith(self.below) for path in paths):
            return
        number = next(self.numbers)
        NUMBER.pack_into(self.shared, NUMBER.size, number + 1)
        if self.at is None or number < self.at:
            return
        if number == self.at:
            NUMBER.pack_into(self.shared, 0, time.monotonic())
        self.springing = True  # what the spring does to files itself does not count
        try:
            self.spring(number - self.at, event, arguments)
        finally:
            self.springing = False


def fails(error: int, times: float, only_writes: bool = False) -> Spring:
    """So many operations fail with an error of the operating system."""

    def spring(since: int, event: str, arguments: tuple[Any, ...]) -> None:
        if since < times and (not only_writes or writes(event, arguments)):
            raise OSError(error, os.strerror(error), str(arguments[0]))

    return spring


def writes(event: str, arguments: tuple[Any, ...]) -> bool:
    return event in CHANGES or (event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)))


def signalled(*numbers: tuple[int, signal.Signals]) -> Spring:
    """The process gets signals."""

    def spring(since: int, event: str, arguments: tuple[Any, ...]) -> None:
        for when, number in numbers:
            if since == when:
                os.kill(os.getpid(), number)

    return spring


def moved_away(folder: Path, times: float) -> Spring:
    """The folder is gone, as soon as there is a run in it, and after so many operations there again."""
    away = away_from(folder)
    operations = count()

    def spring(since: int, event: str, arguments: tuple[Any, ...]) -> None:
        if away.exists():
            if next(operations) >= times and not folder.exists():
                away.rename(folder)
        elif (folder / "job.yaml").exists() and next(operations) == 0:
            folder.rename(away)

    return spring


def away_from(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.away")


def injected(fault: str, output: Path, rng: np.random.Generator) -> Spring:
    """A fault at an operation on a file; errors last for one operation or many, or until the process ends."""
    lasts = inf if rng.random() < 0.3 else float(rng.geometric(0.15))
    later = int(rng.integers(1, 9))
    return {
        "kill -9": signalled((0, signal.SIGKILL)),
        "SIGTERM": signalled((0, signal.SIGTERM)),
        "Ctrl-C": signalled((0, signal.SIGINT)),
        "Ctrl-C twice": signalled((0, signal.SIGINT), (later, signal.SIGINT)),
        "frozen, wakes up late": signalled((0, signal.SIGSTOP)),
        "I/O error": fails(EIO, 1),
        "no space left": fails(ENOSPC, lasts, only_writes=True),
        "becomes read-only": fails(EROFS, lasts, only_writes=True),
        "stale mount": fails(ESTALE, lasts),
        "folder moved away, and back": moved_away(output, lasts),
    }[fault]


INJECTED = (
    "kill -9",
    "SIGTERM",
    "Ctrl-C",
    "Ctrl-C twice",
    "frozen, wakes up late",
    "I/O error",
    "no space left",
    "becomes read-only",
    "stale mount",
    "folder moved away, and back",
)

# ---- faults from outside


class Disk:
    """A file system at a folder, of a process in a mount namespace of its own."""

    def __init__(self, folder: Path):
        self.folder, self.device = folder, folder.with_name(f"{folder.name}.device")
        folder.mkdir()
        self.device.mkdir()
        mount("-t", "tmpfs", "-o", "size=1g", "kintsugi", self.device)
        self.return_()

    def fill(self) -> None:
        """No space is left from now on."""
        while True:
            found = os.statvfs(self.device)
            used = (found.f_blocks - found.f_bfree) * found.f_frsize
            with suppress(subprocess.CalledProcessError):  # more is used by now
                return mount("-o", f"remount,size={used}", self.device)

    def extend(self) -> None:
        mount("-o", "remount,size=1g", self.device)

    def protect(self) -> None:
        """Nothing can be written from now on."""
        while True:
            with suppress(subprocess.CalledProcessError):  # a file is open for writing
                return mount("-o", "remount,ro", self.device)

    def permit(self) -> None:
        mount("-o", "remount,rw", self.device)

    def leave(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def return_(self) -> None:
        mount("--bind", self.device, self.folder)

    def remove(self) -> None:
        subprocess.run(["umount", self.folder, self.device], check=True)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def why_no_mounts() -> str | None:
    """Why nothing can be mounted here, None if it can."""
    probe = [*NAMESPACE, "mount", "-t", "tmpfs", "kintsugi", "/mnt"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else None


MOUNTED: dict[str, tuple[Callable[[Disk], None], Callable[[Disk], None]]] = {
    "disk full": (Disk.fill, Disk.extend),
    "disk read-only": (Disk.protect, Disk.permit),
    "mount lost": (Disk.leave, Disk.return_),
}
"""What happens to a disk, and what mends it."""

KILLED, DAMAGED = "kill -9 at any moment", "files damaged"


def damage(run: Path, rng: np.random.Generator) -> bool:
    """Truncate, delete, or flip a bit of one file in commits/ or data/; returns whether its size tells."""
    found = sorted(path for part in ("commits", "data") for path in (run / part).glob("[!.]*"))
    if not found:
        return True
    victim = found[rng.integers(len(found))]
    content = bytearray(victim.read_bytes())
    place, kind = int(rng.integers(len(content))), rng.integers(3)
    if kind == 0:
        victim.unlink()
    elif kind == 1:
        victim.write_bytes(content[:place])
    else:
        content[place] ^= 1 << rng.integers(8)
        victim.write_bytes(content)
    return bool(kind < 2)


def descendants(process: int) -> Iterator[tuple[int, str]]:
    """Process ids and command lines of a process's children, of theirs, and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    waiting = list(children.get(process, []))
    while waiting:
        found = waiting.pop()
        waiting += children.get(found, [])
        with suppress(OSError):
            yield found, Path(f"/proc/{found}/cmdline").read_text().replace("\0", " ").strip()


# ---- a Ray of its own

VICTIMS = ("driver", "worker", "raylet", "gcs")
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT)
HANGS = 150.0  # seconds after the last signal, after which a command counts as hanging


@dataclass(frozen=True)
class Strike:
    """A signal to one process of a run; one that is stopped goes on after `seconds`.

    Attributes:
        after: commits, or -1: as soon as the victim is there. delay: seconds since then.
    """

    number: signal.Signals
    victim: str
    after: int
    delay: float
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.number.name} {self.victim}"


def schedule(rng: np.random.Generator, units: int) -> list[Strike]:
    """One to three strikes while Ray starts, or the units are done."""

    def strike() -> Strike:
        number, victim = SIGNALS[rng.choice(3, p=(0.5, 0.4, 0.1))], VICTIMS[rng.integers(len(VICTIMS))]
        after, delay = int(rng.integers(-1, units - 1)), float(rng.exponential(0.5))
        return Strike(number, victim, after, delay, float(rng.choice((0.3, 2, 6)) * rng.uniform(0.5, 1.5)))

    return sorted((strike() for _ in range(rng.integers(1, 4))), key=lambda strike: strike.after)


class Chaos:
    """`kintsugi run` on a Ray of its own, whose processes get signals; only these.

    Attributes:
        calm: an undisturbed run.
    """

    executor = "Ray of its own"
    units, images, pause = 6, 12, 0.1  # seconds for each batch of two

    def __init__(self, base: Path):
        self.base, self.calm = base, base / "calm"
        self.shards = write_shards(base / "shards", shards=2, images=self.images // 2)
        assert not cli.app(["run", str(self.job(self.calm)), "--address", "none"], standalone_mode=False)

    def job(self, output: Path) -> Path:
        prior = {"name": "gaussian", "pause": self.pause}
        return write_job(output.parent / f"{output.name}.yaml", self.shards, output, prior)

    def start(self, output: Path, log: Path, address: str, **variables: str) -> subprocess.Popen[bytes]:
        command = [*PROGRAM, "kintsugi", "run", str(self.job(output)), "--address", address]
        quick = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "KINTSUGI_FROZEN_SECONDS": "3"}
        with log.open("ab") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=file, start_new_session=True, env=os.environ | quick | variables
            )

    def run(self, name: str, strikes: list[Strike], address: str = "local") -> Outcome:
        """A run that is struck, and then given at the address until it is complete."""
        outcome = Outcome(self.executor, [])
        output, log = self.base / name / "run", self.base / name / "log"
        output.parent.mkdir()
        began = time.monotonic()
        # Sockets have short paths; the folder marks the processes of this run and of no other.
        with tempfile.TemporaryDirectory(prefix="kc-", ignore_cleanup_errors=True) as marked:
            outcome.began = began
            driver = self.start(output, log, "local", RAY_TMPDIR=marked)
            timers = self.strike(driver, Path(marked), output, strikes, outcome)
            self.settle(driver, log, outcome)
            while not outcome.complete and len(outcome.codes) < 4:
                self.settle(self.start(output, log, address, RAY_TMPDIR=marked), log, outcome)
            outcome.ended = time.monotonic()
            for timer in timers:
                timer.join()
            if timers:
                time.sleep(1)  # for what they write when they are awake
            for process, _ in marked_with(Path(marked)):
                tell(signal.SIGKILL, process)
        if outcome.complete:
            outcome.compare(output, self.calm)
        said = log.read_text(errors="replace")
        if any(text in said for text in RAW):
            outcome.findings.append("a text of Ray's own on the terminal")
        if not outcome.clean:
            outcome.log = said
        return outcome

    def strike(
        self,
        driver: subprocess.Popen[bytes],
        marked: Path,
        output: Path,
        strikes: list[Strike],
        outcome: Outcome,
    ) -> list[threading.Timer]:
        """Send the signals, as long as the command goes on; returns what wakes up those that sleep."""
        sleepers = []
        for strike in strikes:
            found: list[int] = []
            deadline = time.monotonic() + 60
            while driver.poll() is None and time.monotonic() < deadline:
                committed = len(list(output.glob("commits/*.json")))
                found = [driver.pid] if strike.victim == "driver" else victims(marked, strike.victim)
                if found and (strike.after < 0 or committed >= strike.after):
                    break
                time.sleep(0.05)
            with suppress(subprocess.TimeoutExpired):
                driver.wait(strike.delay)
            if driver.poll() is None and found:
                tell(strike.number, found[0])
                outcome.faults.append(strike.name)
                if strike.number == signal.SIGSTOP:
                    sleepers.append(threading.Timer(strike.seconds, tell, (signal.SIGCONT, found[0])))
                    sleepers[-1].start()
        return sleepers

    def settle(self, driver: subprocess.Popen[bytes], log: Path, outcome: Outcome) -> None:
        try:
            outcome.codes.append(driver.wait(HANGS))
        except subprocess.TimeoutExpired:
            outcome.hangs += 1
            tell(signal.SIGKILL, driver.pid)
            outcome.codes.append(driver.wait())
        with log.open("a") as file:
            print(
                f"\n→ {outcome.codes[-1]} after {time.monotonic() - (outcome.began or nan):.0f} s", file=file
            )


RAW = (
    "[state-dump]",
    "(raylet)",
    "core_worker",
    " C  [",
    "*** SIG",
    "StackTrace",
    "Stack trace",
    "(pid=",
    ".cc:",
)
"""What begins or stands in texts that Ray's C++ and its Python write to a terminal."""


def tell(number: signal.Signals, *processes: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def marked_with(folder: Path) -> Iterator[tuple[int, str]]:
    """Processes with this RAY_TMPDIR, orphans too, and their command lines."""
    variable = f"RAY_TMPDIR={folder}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if variable in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name), (entry / "cmdline").read_text().replace("\0", " ").strip()


def victims(marked: Path, kind: str) -> list[int]:
    """Processes of a kind beside the driver."""
    ends = {"worker": "ray::GaussianWorker", "raylet": "/raylet", "gcs": "/gcs_server"}[kind]
    names = ((process, name.split(" ")[0]) for process, name in marked_with(marked))
    return sorted(
        process
        for process, name in names
        if name.startswith(ends) or (kind != "worker" and name.endswith(ends))
    )


# ---- the in-process executor


class Forked:
    """Commands with `--address none` in children of this process.

    Attributes:
        calm: an undisturbed run. operations, seconds: on files, and of time, in such a run.
    """

    executor = "in process"

    def __init__(self, base: Path):
        self.base, self.calm, self.log = base, base / "calm", base / "log"
        self.shards = write_shards(base / "shards", shards=2, images=6)
        ledger.pause = lambda attempt: 0.01  # type: ignore[assignment]  # seconds, before storage is tried again
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            cli.app(self.job(self.calm), standalone_mode=False)  # which imports what a run needs
        trap, started = Trap(base), time.monotonic()
        assert self.command(self.job(base / "counted"), trap) == 0, self.log.read_text()
        self.operations, self.seconds = trap.operations, time.monotonic() - started

    def job(self, output: Path, pause: float = 0.0) -> list[str]:
        """The command for a run, without `kintsugi`."""
        prior = {"name": "gaussian", "pause": pause}
        file = write_job(self.base / f"{output.name}.yaml", self.shards, output, prior)
        return ["run", str(file), "--address", "none"]

    def command(
        self, arguments: list[str], trap: Trap | None = None, act: Callable[[int], None] = lambda child: None
    ) -> int:
        """Run a command; returns its exit code, or minus the signal that killed or stopped it.

        act: what to do to the child meanwhile.
        """
        if (child := os.fork()) == 0:
            self.be_the_child(arguments, trap)
        self.child = child
        act(child)
        return self.wait()

    def wait(self) -> int:
        _, status = os.waitpid(self.child, os.WUNTRACED)
        return -os.WSTOPSIG(status) if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)

    def be_the_child(self, arguments: list[str], trap: Trap | None) -> NoReturn:
        code: Any = 0
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            print("$ kintsugi", *arguments, flush=True)
            sys.argv[1:] = arguments
            if trap is not None:
                sys.addaudithook(trap)
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = TRACEBACK
        finally:
            sys.stdout.flush()
            os._exit(code)

    def storm(self, output: Path, faults: Sequence[str], rng: np.random.Generator) -> Outcome:
        """A run that goes through faults, one after another, until it is complete."""
        outcome = Outcome(self.executor, list(faults))
        arguments = self.job(output)
        self.log.unlink(missing_ok=True)
        output.parent.mkdir(parents=True)
        for fault in faults:
            if fault == KILLED:
                began = self.killed(outcome, arguments, rng)
            elif fault == DAMAGED:
                began = self.damaged(outcome, arguments, output, rng)
            else:
                began = self.trapped(outcome, arguments, output, fault, rng)
            if outcome.began is None:
                outcome.began = began
        self.finish(outcome, arguments, output)
        return outcome

    def finish(self, outcome: Outcome, arguments: list[str], output: Path) -> None:
        """The same command, if the last one did not come to the end; and the comparison."""
        if not outcome.complete:
            outcome.codes.append(self.command(arguments))
        outcome.ended = time.monotonic()
        if outcome.complete:
            outcome.compare(output, self.calm)
        if not outcome.clean:
            outcome.log = self.log.read_text()

    def killed(self, outcome: Outcome, arguments: list[str], rng: np.random.Generator) -> float:
        began = 0.0

        def kill(child: int) -> None:
            nonlocal began
            time.sleep(rng.uniform(0, self.seconds))
            began = time.monotonic()
            os.kill(child, signal.SIGKILL)

        outcome.codes.append(self.command(arguments, act=kill))
        return began

    def damaged(
        self, outcome: Outcome, arguments: list[str], output: Path, rng: np.random.Generator
    ) -> float:
        """A file of the run, as far as it is, is damaged; where its size does not tell, `verify --repair`."""
        killed = Trap(self.base, int(rng.integers(self.operations)), signalled((0, signal.SIGKILL)))
        self.command(arguments, killed)
        if not damage(output, rng):
            assert self.command(["verify", str(output), "--repair"]) == 0, self.log.read_text()
        began = time.monotonic()
        outcome.codes.append(self.command(arguments))
        return began

    def trapped(
        self, outcome: Outcome, arguments: list[str], output: Path, fault: str, rng: np.random.Generator
    ) -> float | None:
        trap = Trap(self.base, int(rng.integers(self.operations)), injected(fault, output, rng))
        outcome.codes.append(self.command(arguments, trap))
        if outcome.codes[-1] == -signal.SIGSTOP:
            sleeper = self.child
            outcome.codes.append(self.command(arguments))
            self.child = sleeper
            os.kill(sleeper, signal.SIGCONT)
            outcome.codes.append(self.wait())
        if (away := away_from(output)).exists():
            if output.exists():  # made anew beneath what was gone
                outcome.stray += [f"beneath: {name}" for name in sorted(files(output)) or ["."]]
                rmtree(output)
            away.rename(output)
        return trap.sprung

    def on_disk(self, output: Path, fault: str, rng: np.random.Generator) -> Outcome:
        """A run whose disk has a fault at a random moment, for a moment or until its process has ended."""
        outcome = Outcome(self.executor, [fault])
        pause = 0.05  # for each of six batches, so that the run is still going on
        arguments = self.job(output, pause)
        self.log.unlink(missing_ok=True)
        output.parent.parent.mkdir(parents=True, exist_ok=True)
        disk = Disk(output.parent)
        happen, mend = MOUNTED[fault]
        for_a_moment = rng.random() < 0.5

        def act(child: int) -> None:
            while not (output / "job.yaml").exists():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 6 * pause))
            outcome.began = time.monotonic()
            happen(disk)
            if for_a_moment:
                time.sleep(rng.uniform(0, 0.1))
                mend(disk)

        outcome.codes.append(self.command(arguments, act=act))
        if not for_a_moment:
            if fault == "mount lost":
                outcome.stray += [f"beneath: {name}" for name in sorted(files(output.parent))]
            mend(disk)
        self.finish(outcome, arguments, output)
        disk.remove()
        return outcome


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    storm = commands.add_parser("storm")
    storm.set_defaults(do=weather)
    storm.add_argument("folder", type=Path)
    storm.add_argument("--runs", type=int, default=50)
    storm.add_argument("--seed", type=int, default=0)
    storm.add_argument(
        "--disks", type=int, default=0, help="runs for each fault of a mounted disk, beside the others"
    )
    kintsugi = commands.add_parser("kintsugi", add_help=False, prefix_chars="\0")
    kintsugi.set_defaults(do=command)
    kintsugi.add_argument("arguments", nargs="*")
    know_stand_ins()
    options = parser.parse_args()
    options.do(options)


def command(options: argparse.Namespace) -> None:
    crew.FROZEN_SECONDS = float(os.environ.get("KINTSUGI_FROZEN_SECONDS", crew.FROZEN_SECONDS))
    sys.argv[1:] = options.arguments
    cli.main()


def weather(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    executor = Forked(options.folder)
    kinds = (*INJECTED, KILLED, DAMAGED)
    outcomes = []
    for number in range(options.runs):
        rng = np.random.default_rng([options.seed, number])
        faults = [kinds[number % len(kinds)], *rng.choice(kinds, rng.integers(3))]
        outcomes.append(executor.storm(options.folder / f"{number:03d}" / f"run-{number:03d}", faults, rng))
    for number in range(options.disks):
        for place, fault in enumerate(MOUNTED):
            rng = np.random.default_rng([options.seed, number, place])
            name = f"disk-{place}-{number:03d}"
            outcomes.append(executor.on_disk(options.folder / name / f"run-{name}", fault, rng))
    (options.folder / "outcomes.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes]))


if __name__ == "__main__":
    main()
