"""How the engine scales: scheduling, memory and time of the driver, and planning.

    python benchmarks/scale.py run       20,000 tiny samples over 4 pretend nodes with 2 pretend GPUs each
    python benchmarks/scale.py actors    8, 16, 32 and 64 actors, each with one pretend GPU, and units of 1 s
    python benchmarks/scale.py plan      1,280,000 samples planned and none of them run
    python benchmarks/scale.py units     what a unit costs of a plan of 320, 5,120 and 50,000 of them
    python benchmarks/scale.py commits   what `status` and resuming cost of a run of so many units
    python benchmarks/scale.py polls     what it costs the driver to know the state of 8, 64 and 512 actors

`run` starts a Ray cluster of several nodes on this machine. Its sampler returns H⁺y after a pause that
stands for the network, so that all the rest is what is measured. Efficiency is the time that the sampler took
over the time that the actors were there: 1 if no actor ever waits. Memory is read from the operating system.
"""

import hashlib
import io
import itertools
import os
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from kit.forked import Forks
from kit.plugins import know_stand_ins
from PIL import Image

from kintsugi.pipeline.analysis.aggregate import summarise
from kintsugi.pipeline.data.units import Unit, read_members
from kintsugi.pipeline.execution.actors import Named, Pool, RayWorker
from kintsugi.pipeline.execution.commit import Commit
from kintsugi.pipeline.execution.crew import Actor, Crew
from kintsugi.pipeline.execution.directory import COMMITS, DATA, PLAN, commit_file, data_file
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part, Run
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.storage.records import sealed

SIZE = 8
PER_SHARD = 1000
app = typer.Typer(help=__doc__, rich_markup_mode=None, add_completion=False)


class OnCPU(RayWorker):
    """A worker on this machine's device: pretend GPUs have no memory."""

    def __init__(self, run: Named, device: str):
        super().__init__(run, "cpu")


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def make_shards(folder: Path, samples: int, content: bytes) -> None:
    """Tars of the same content under different names; written by hand, since tarfile takes minutes."""
    padded = content + bytes(-len(content) % 512)
    for shard in range(-(-samples // PER_SHARD)):
        names = range(shard * PER_SHARD, min(samples, (shard + 1) * PER_SHARD))
        members = (header(f"sample_{number:08d}.png", len(content)) + padded for number in names)
        (folder / f"{shard:05d}.tar").write_bytes(b"".join(members) + bytes(1024))


def header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def job_of(folder: Path, unit_size: int, sampler: dict[str, Any], **compute: Any) -> Job:
    return Job.model_validate(
        {
            "data": {"shards": str(folder / "*.tar"), "size": SIZE},
            "degradation": {"operator": {"name": "denoise"}},
            "sampler": sampler,
            "metrics": ["psnr"],
            "images": "none",
            "compute": {"unit_size": unit_size, "cpus_per_actor": 1, **compute},
            "output": str(folder / "run"),
        }
    )


def picture() -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def cluster(nodes: int, gpus: int, **others: Any) -> Any:
    """Nodes on this machine that pretend to have GPUs. `others`: arguments of each."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, **others}
    found = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(nodes):
        found.add_node(num_cpus=gpus, num_gpus=gpus, **others)
    ray.init(address=found.address, log_to_driver=False)
    found.wait_for_nodes()
    return found


@app.command()
def run(
    samples: Annotated[int, typer.Option()] = 20_000,
    nodes: Annotated[int, typer.Option()] = 4,
    gpus: Annotated[int, typer.Option(help="Pretend GPUs per node.")] = 2,
    pause: Annotated[float, typer.Option(help="Seconds for every image in the sampler.")] = 0.02,
    unit_size: Annotated[int, typer.Option()] = 250,
    runs: Annotated[int, typer.Option(min=1, help="Runs in one session, with so many samples each.")] = 1,
) -> None:
    """Run many tiny samples over pretend nodes."""
    import ray

    know_stand_ins()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shards(folder, samples, picture())
        sampler = {"name": "identity", "pause": pause}
        job = job_of(folder, unit_size, sampler, batch_size=min(50, unit_size))
        outputs = [{"output": str(folder / f"run{seed}"), "seed": seed} for seed in range(runs)]
        these = [open_or_plan(job.model_copy(update=fields)) for fields in outputs]
        started_cluster = cluster(nodes, gpus)
        before, live = memory("VmRSS"), Live()
        pool = Pool([Part(this, list(this.outstanding())) for this in these], live, OnCPU)
        commits = list(pool.work())
        ended = time.monotonic()
        pool.close()
        ray.shutdown()
        started_cluster.shutdown()
        actors = pool.crew.present
        there = sum(ended - actor.since for actor in actors)
        sampled = sum(commit.seconds["sample"] for commit in commits)
        wall = ended - min(actor.since for actor in actors)
        mark = time.perf_counter()
        rows = sum(summarise(this, folder / "rows.parquet")[0].rows for this in these)
        aggregation = time.perf_counter() - mark
        assert rows == samples * runs, "every sample is one row of each run"
        over = f"{len(actors)} actors on {nodes} nodes"
        print(f"{rows:,} samples of {runs} runs in {len(commits)} units over {over}")
        print("| what | value |\n|---|---|")
        print(f"| from the first actor's start to the last commit | {wall:.1f} s |")
        print(f"| in the sampler, all actors | {sampled:.1f} s |")
        print(f"| actors were there | {there:.1f} s |")
        print(f"| efficiency | {sampled / there:.3f} |")
        for part in ("read", "degrade", "score", "encode", "write"):
            spent = sum(commit.seconds[part] for commit in commits)
            print(f"| of it lost: {part} | {spent / there:.3f} |")
        outside = there - sum(commit.seconds["total"] for commit in commits)
        print(f"| of it lost: between units, and at the end | {outside / there:.3f} |")
        print(f"| driver's memory before and at most | {before:.0f} and {memory('VmHWM'):.0f} MiB |")
        print(f"| final aggregation | {aggregation:.2f} s |")


class Together(Pool):
    """A pool that begins when all actors are there, and once more when each has done a unit and loaded all.

    Attributes:
        rounds: how often it has begun. began, before: time.monotonic and `spent` at the last beginning.
    """

    rounds = 0

    def assign(self) -> None:
        if self.rounds < 2:
            if len(self.crew.free()) < self.job.compute.actors:
                return
            self.rounds, self.began, self.before = self.rounds + 1, time.monotonic(), self.spent()
        super().assign()

    def spent(self) -> np.ndarray:
        """Seconds of CPU so far: of this process, of the actors, of all others that it has started."""
        actors = {actor.process for actor in self.crew.present}
        found = {process.pid: process.cpu_times() for process in psutil.Process().children(recursive=True)}
        seconds = {process: times.user + times.system for process, times in found.items()}
        of_actors = sum(seconds[process] for process in actors)
        return np.array([time.process_time(), of_actors, sum(seconds.values()) - of_actors])


@app.command()
def actors(
    count: Annotated[list[int] | None, typer.Option(help="How many actors; repeatable.")] = None,
    unit: Annotated[list[float] | None, typer.Option(help="Seconds of a unit; repeatable.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each run, about.")] = 60.0,
    nodes: Annotated[int, typer.Option(help="Pretend nodes that share the actors.")] = 2,
) -> None:
    """What a unit of one sample costs the driver and its actor in CPU, and for how long actors wait."""
    import ray

    know_stand_ins()
    counts, lengths = count or [8, 16, 32, 64], unit or [1.0]
    head = "actors", "a unit, s", "units", "in samplers", "between units", "driver", "actor", "Ray's others"
    print(f"| {' | '.join(head)} | cores busy | an actor's memory, MiB |\n|{'---|' * 10}")
    with tempfile.TemporaryDirectory() as name, Forks() as forks:
        started = cluster(nodes, -(-max(counts) // nodes), **forks.node)
        for crew, length in itertools.product(counts, lengths):
            folder = Path(name) / f"{crew}x{length}"
            folder.mkdir()
            make_shards(folder, crew * (1 + max(1, round(seconds / length))), picture())
            job = job_of(folder, 1, {"name": "identity", "pause": length}, batch_size=1, actors=crew)
            this = open_or_plan(job.model_copy(update={"prior": {"name": "gaussian"}}))
            pool = Together([Part(this, list(this.outstanding()))], Live(), OnCPU)
            commits = list(pool.work())[crew:]
            wall = time.monotonic() - pool.began
            spent = pool.spent() - pool.before
            processes = [psutil.Process(actor.process) for actor in pool.crew.present]
            held = np.median([process.memory_full_info().pss for process in processes]) / 2**20
            pool.close()
            sampled, within = (
                sum(commit.seconds[part] for commit in commits) for part in ("sample", "total")
            )
            shares = f"{sampled / wall / crew:.1%} | {1 - within / wall / crew:.1%}"
            each = " | ".join(f"{1000 * part / len(commits):.1f} ms" for part in spent)
            row = f"{crew} | {length:g} | {len(commits):,} | {shares} | {each}"
            print(f"| {row} | {spent.sum() / wall:.2f} | {held:.0f} |", flush=True)
        ray.shutdown()
        started.shutdown()


def exponent(counts: list[int], seconds: list[float]) -> str:
    """b of seconds ∝ countsᵇ, by least squares of the logarithms."""
    return f"{np.polyfit(np.log(counts), np.log(seconds), 1)[0]:.2f}"


def of_children() -> float:
    """Seconds of CPU of the processes that this one has started and that have ended."""
    return sum(os.times()[2:4])


@app.command()
def plan(
    samples: Annotated[list[int] | None, typer.Option(help="How many; repeatable.")] = None,
    unit_size: Annotated[int, typer.Option()] = 256,
) -> None:
    """Plan many samples, and none of them run; with several cores, by several processes."""
    head = "samples", "shards", "units", "planning, s", "its CPU, s", "of it others', s", "listing units, s"
    print(f"| {' | '.join(head)} | memory before, MiB | at most, MiB |\n|{'---|' * 9}")
    spent, counts = [], samples or [20_000, 1_280_000]
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_shards(folder, count, bytes(100))
            job = job_of(folder, unit_size, {"name": "conjugate"})
            before, mark, busy = memory("VmRSS"), time.perf_counter(), time.process_time()
            ended = of_children()
            this = open_or_plan(job)
            planned, others = time.perf_counter() - mark, of_children() - ended
            busy = time.process_time() - busy + others
            mark = time.perf_counter()
            units = sum(1 for _ in this.outstanding())
            spent.append(busy)
            listed = time.perf_counter() - mark
            row = (
                f"{count:,}",
                f"{len(this.summary.shards):,}",
                f"{units:,}",
                f"{planned:.1f}",
                f"{busy:.1f}",
                f"{others:.1f}",
                f"{listed:.2f}",
            )
            print(f"| {' | '.join(row)} | {before:.0f} | {memory('VmHWM'):.0f} |", flush=True)
    if len(counts) > 1:
        print(f"CPU for planning grows with the samples to the power of {exponent(counts, spent)}")


@app.command()
def units() -> None:
    """Find the keys of units in plans of ever more units, of 32 samples each."""
    print("| units | finding the first one's keys, ms of CPU | another's, median |\n|---|---|---|")
    counts, medians = [320, 5120, 50_000], []
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_shards(folder, 32 * count, b"")
            this = open_or_plan(job_of(folder, 32, {"name": "conjugate"}))
            every = list(this.units())
            chosen = [every[place] for place in np.random.default_rng(0).integers(0, len(every), 50)]
            spent = []
            for unit in chosen:
                mark = time.process_time()
                read_members(this.folder / PLAN, unit)
                spent.append(1000 * (time.process_time() - mark))
            medians.append(float(np.median(spent[1:])))
            print(f"| {len(every):,} | {spent[0]:.1f} | {medians[-1]:.2f} |", flush=True)
    print(f"it grows with the units to the power of {exponent(counts, medians)}")


def record(this: Run, unit: Unit) -> None:
    """What a unit leaves behind that is done, but for its rows."""
    rows = b"no rows"
    made_by = dict.fromkeys(("kintsugi", "torch", "numpy", "device", "host"), "1.2.3+cpu")
    seconds = dict.fromkeys(("read", "fetch", "decode", "degrade", "sample", "score", "write", "total"), 1.25)
    done = Commit(
        unit=unit.unit,
        rows=unit.samples,
        failed=0,
        data_bytes=len(rows),
        data_sha256=hashlib.sha256(rows).hexdigest(),
        config_hash=this.config_hash,
        prior_sha256=this.prior.sha256,
        attempt=1,
        seconds=seconds,
        sample_seconds=[0.3125] * unit.samples,
        made_by=made_by,
    )
    data_file(this.folder, unit.unit).write_bytes(rows)
    commit_file(this.folder, unit.unit).write_bytes(sealed(asdict(done)))


@app.command()
def commits() -> None:
    """List what is done of runs of ever more units, of 4 samples each."""
    head = "units", "all records", "status, the first time", "again", "with 1 % new", "resuming"
    print(f"s of CPU:\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    table = []
    for count in (320, 5120, 50_000):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.environ["KINTSUGI_CACHE"] = str(folder / "cache")
            make_shards(folder, 4 * count, b"")
            this = open_or_plan(job_of(folder, 4, {"name": "conjugate"}))
            every = list(this.units())
            for place in (COMMITS, DATA):
                (this.folder / place).mkdir()
            for unit in every[count // 100 :]:
                record(this, unit)
            time.sleep(3)  # what is newer is read again
            spent = [cpu(partial(deque, this.commits(), 0)), cpu(this.progress), cpu(this.progress)]
            for unit in every[: count // 100]:
                record(this, unit)
            spent += [cpu(this.progress), cpu(this.to_do)]
            assert this.progress().units == len(every)
        table.append((count, *spent))
        print(f"| {count:,} | {' | '.join(f'{each:.3f}' for each in spent)} |", flush=True)
    units, *columns = np.log(np.array(table)).T
    slopes = (np.polyfit(units, column, 1)[0] for column in columns)
    print(f"| fitted exponent | {' | '.join(f'{each:.2f}' for each in slopes)} |")


def cpu(work: Callable[[], Any]) -> float:
    """Seconds of CPU that it takes."""
    mark = time.process_time()
    work()
    return time.process_time() - mark


class AtWork:
    """Stands for the books of runs whose units do not end before `until`, by time.monotonic."""

    def __init__(self, until: float):
        self.until, self.open = until, [None]

    def left(self, enough: int = 1) -> int:
        return int(time.monotonic() < self.until)

    def next(self, now: float) -> None:
        return None


class Counted(Crew):
    """A crew that knows how many answers there were."""

    answers = 0

    def answered(self, reference: Any) -> None:
        self.answers += 1
        super().answered(reference)


class Alone(Pool):
    """That of actors that are there already."""

    def wanted(self) -> int:
        return len(self.crew.present)


@app.command()
def polls(
    actors: Annotated[list[int] | None, typer.Option(help="How many; repeatable.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each.")] = 20.0,
) -> None:
    """The driver's CPU while all actors are at work. Four processes answer for all of them, by Ray."""
    import ray

    @ray.remote(num_cpus=0, max_concurrency=1)
    class Pretended:
        def state(self) -> tuple[int, float]:
            return 3, 0.5

        def hold(self) -> None:
            time.sleep(3600)

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    print("| actors | driver's CPU, share of a core | answers a second |\n|---|---|---|")
    for count in actors or [8, 64, 512]:
        handles, holder = [Pretended.remote() for _ in range(4)], Pretended.remote()
        ray.get([handle.state.remote() for handle in (*handles, holder)])
        pool = Alone.__new__(Alone)
        pool.live, pool.books = Live(), AtWork(time.monotonic() + seconds)
        pool.crew = Counted(lambda: None, pool.live)
        pool.crew.present = [Actor(handles[number % 4], None, free=None) for number in range(count)]
        work = SimpleNamespace(task=SimpleNamespace(unit=SimpleNamespace(samples=256)))
        pool.working = {holder.hold.remote(): (actor, None, work) for actor in pool.crew.present}
        began, mark = time.process_time(), time.monotonic()
        assert not list(pool.work())
        spent, wall = time.process_time() - began, time.monotonic() - mark
        print(f"| {count} | {100 * spent / wall:.1f} % | {pool.crew.answers / wall:.0f} |", flush=True)
        for handle in (*handles, holder):
            ray.kill(handle)


if __name__ == "__main__":
    app()
