"""Fuzz what reads files for as long as there is time; inputs that fail are kept.

    python benchmarks/fuzz.py --seconds 600 --seed 1

Prints how many inputs of each kind were tried, and ends with 1 if one of them failed.
"""

import argparse
import faulthandler
import sys
import time
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "tests")]

from fuzz import MEMORY, SECONDS, failure, inputs, memory, targets  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", help="only these; see tests/fuzz.py")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where inputs that fail go")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of Pillow, about what is broken in the files
    chosen = {name: t for name, t in targets().items() if not arguments.target or name in arguments.target}
    failed = 0
    for name, target in chosen.items():
        before, tried, slowest = memory(), 0, 0.0
        end = time.monotonic() + arguments.seconds / len(chosen)
        for content in inputs(target, arguments.seed):
            if time.monotonic() > end:
                break
            faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # a hang ends here, with its place
            started = time.perf_counter()
            why = failure(target, content)
            slowest = max(slowest, time.perf_counter() - started)
            tried += 1
            if why is not None:
                failed += 1
                arguments.keep.mkdir(exist_ok=True)
                (arguments.keep / f"{name}-{arguments.seed}-{tried}").write_bytes(content)
                print(f"{name}, input {tried}: {why}")
        faulthandler.cancel_dump_traceback_later()
        grown = memory() - before
        if grown > MEMORY:
            failed += 1
        print(f"{name}: {tried:,} inputs, slowest {slowest:.2f} s, memory grown by {grown >> 20} MiB")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
