"""Fuzz what reads files for as long as there is time; inputs at fault are kept.

    python benchmarks/fuzz.py --seconds 600 --seed 1

Every kind of input has a process of its own, which can map no more than twice the memory that is allowed,
and which is ended when it hangs. Prints a table, and ends with 1 if there was a fault.
"""

import argparse
import faulthandler
import os
import resource
import sys
import tempfile
import time
import warnings
from multiprocessing import get_context
from pathlib import Path

import diffusers
from kit.fuzz import MEMORY, SECONDS, TARGETS, Tally, inputs, memory
from rich.console import Console
from rich.table import Table

COLUMNS = ("surface", "tried", "ended well", "refused", "failed rows", "faults", "MiB more", "slowest, s")


def try_inputs(name: str, seconds: float, seed: int, keep: Path, results: object) -> None:
    """Try the inputs of a target; send the tally, and how much more memory was taken than by good files."""
    warnings.simplefilter("ignore")  # of Pillow, about what is broken in the files
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        tempfile.tempdir = os.environ["KINTSUGI_CACHE"] = folder
        target, good, tally = TARGETS[name](), Tally(), Tally()
        for content in target.seeds:
            good.add(target, content)
        tally.faults += good.faults
        before = memory()
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * MEMORY, resource.RLIM_INFINITY))
        end = time.monotonic() + seconds
        for content in inputs(target, seed):
            if time.monotonic() > end:
                break
            (keep / "in-hand").write_bytes(content)  # found here if the process ends
            faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # what no signal ends
            tally.add(target, content)
        faulthandler.cancel_dump_traceback_later()
        results.send((tally, memory() - before))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", choices=TARGETS, help="only these")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where inputs at fault go")
    arguments = parser.parse_args()
    chosen = arguments.target or list(TARGETS)
    arguments.keep.mkdir(exist_ok=True)
    diffusers.logging.set_verbosity_error()  # of fields that are in no configuration
    TARGETS["unet/config.json"]()  # imports it here, and not in every process
    table = Table(*COLUMNS, title=f"seed {arguments.seed}")
    total, faults = 0, 0
    context = get_context("fork")
    for name in chosen:
        ours, theirs = context.Pipe()
        settings = (name, arguments.seconds / len(chosen), arguments.seed, arguments.keep.absolute(), theirs)
        process = context.Process(target=try_inputs, args=settings)
        process.start()
        theirs.close()
        try:
            tally, more = ours.recv()
        except EOFError:
            tally, more = Tally(), 0
            tally.faults.append(("the process ended", (arguments.keep / "in-hand").read_bytes()))
        process.join()
        if more > MEMORY:
            tally.faults.append((f"{more >> 20} MiB", b""))
        for number, (why, content) in enumerate(tally.faults):
            file = arguments.keep / f"{name.replace('/', '-')}-{arguments.seed}-{number}"
            file.write_bytes(content)
            print(f"{file}: {why}")
        counts = (tally.tried, tally.read, tally.refused, tally.failed, len(tally.faults), more >> 20)
        table.add_row(name, *(f"{count:,}" for count in counts), f"{tally.slowest:.2f}")
        total, faults = total + tally.tried, faults + len(tally.faults)
        print(f"{name}: {tally.tried:,} tried, {len(tally.faults)} faults", flush=True)
    Console(width=110).print(table)
    print(f"{total:,} inputs tried, {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
