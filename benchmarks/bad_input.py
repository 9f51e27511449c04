"""What a user sees for each kind of malicious or broken input: docs/bad-input.md is what this prints.

    python benchmarks/bad_input.py

Every case is a folder of its own and a command of the command line, run in a process of its own that is
bounded in time and memory. A case fails, and so does this script, where the command ends with a traceback,
does not end, or leaves a file outside the folder it was to write to.
"""

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch
from kit.hostile import CASES, SECRET, cell, finished, forked, seen

HEAD = """# Malicious and broken input

This page is what `python benchmarks/bad_input.py` prints.
[What is done about it, and the tests](security.md).

Every case is a command of its own, in a process of its own: a job on three images of 32², unless something
else is said, of which the input is one, b. Exit codes: 0 all samples done, 1 the job could not run, 2
finished and some samples failed. A job on good images is in the first line. Long messages are cut here.
"""


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    bad: list[str] = []
    print(HEAD)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place).resolve()
        os.environ["COLUMNS"] = "1000"  # messages are not wrapped
        os.environ |= {"KINTSUGI_CACHE": str(root / "cache"), "KINTSUGI_BAD_INPUT": str(root)}
        for module in (finished().parent / "modules").read_text().split():
            with suppress(Exception):  # some are made, not imported
                import_module(module)  # once here, not in every case
        number, longest, most = 0, 0.0, 0.0
        for group, makes in CASES.items():
            chosen = {name: make for name, make in makes.items() if wanted in f"{group}: {name}"}
            if chosen:
                print(f"\n## {group}\n\n| input | exit | what the user sees |\n|---|---|---|")
            for name, make in chosen.items():
                number += 1
                folder = root / f"{number:03d}" / "work"
                folder.mkdir(parents=True)
                found = forked(make(folder), folder)
                print(f"| {cell(name)} | {found.code} | {cell(seen(found, folder))} |", flush=True)
                longest, most = max(longest, found.seconds), max(most, found.mebibytes)
                if found.crashed or SECRET in found.output:
                    bad.append(name)
                    print(f"{name}: {found.made}\n{found.output}", file=sys.stderr)
                shutil.rmtree(folder.parent, ignore_errors=True)
    print(
        f"\n{number} cases; {len(bad)} ended with a traceback, did not end, or wrote outside of their folder."
    )
    print(f"longest {longest:.1f} s, at most {most:.0f} MiB beside an idle process", file=sys.stderr)
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    main()
