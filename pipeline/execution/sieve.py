"""Between Ray's C++ and the terminal: a process of its own, as Ray may end the one that it is in.

Run as a script, it copies its input to stderr but for lines of Ray's log. Where the process that started it
is gone without a farewell, and a line of Ray's was the last, it says in one sentence what happened.
"""

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOG = re.compile(rb"\[\d{4}-[\d:, -]+ [A-Z] \d+ \d+\] |\*\*\* |\[state-dump\]|    \[state-dump\]")
FAREWELL = b"\0over\n"
LOST = "error: Ray lost its node and ended this command; the same command continues\n"
STDERR = 2


@contextmanager
def without_texts_of_ray() -> Iterator[None]:
    """Keep what Ray's C++ writes to this process's stderr from the terminal."""
    terminal = os.dup(STDERR)
    sieve = subprocess.Popen([sys.executable, "-I", __file__], stdin=subprocess.PIPE, start_new_session=True)
    assert sieve.stdin is not None
    os.dup2(sieve.stdin.fileno(), STDERR)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.write(STDERR, FAREWELL)
        os.dup2(terminal, STDERR)
        os.close(terminal)
        sieve.stdin.close()
        sieve.wait()


def lines() -> Iterator[bytes]:
    """Of the input, the last perhaps unended, as long as the process that started this one is there."""
    parent, waiting = os.getppid(), b""
    while True:
        if not select.select([sys.stdin], [], [], 0.1)[0]:
            if os.getppid() != parent:  # others may hold the other end of the pipe
                break
            continue
        if not (part := os.read(sys.stdin.fileno(), 1 << 16)):
            break
        *whole, waiting = (waiting + part).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if waiting:
        yield waiting


def main() -> None:
    """Copy stdin to stderr without lines of Ray, until the farewell, the end or the parent's death."""
    ray = False
    for line in lines():
        text = line.removesuffix(FAREWELL)  # perhaps behind a line that nobody ended
        if not (ray := LOG.match(text) is not None):
            os.write(STDERR, text)
        if text != line:
            return
    if ray:
        os.write(STDERR, LOST.encode())


if __name__ == "__main__":
    main()
