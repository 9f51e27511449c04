"""Processes of their own, which import what they run: a test's own file cannot be."""

import multiprocessing
import os
import re
from pathlib import Path

import torch

PROCESSES = multiprocessing.get_context("forkserver")
# Each process would take seconds to import torch.
PROCESSES.set_forkserver_preload(["kintsugi.pipeline.execution.checkpoints"])


def bytes_read():
    """By this process, from wherever."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def read_for(function, *arguments):
    """What a function returns, and how many bytes it has read for that."""
    before = bytes_read()
    result = function(*arguments)
    return result, bytes_read() - before


def process(start, results, environment, function, arguments):
    os.environ.update(environment)
    torch.set_num_threads(1)
    start.wait()
    results.put(function(*arguments))


def at_once(count, function, *arguments):
    """What `function(*arguments)` returns in so many processes that begin at the same moment."""
    start, results = PROCESSES.Barrier(count), PROCESSES.Queue()
    context = (start, results, dict(os.environ), function, arguments)
    started = [PROCESSES.Process(target=process, args=context) for _ in range(count)]
    for each in started:
        each.start()
    found = [results.get(timeout=60) for _ in started]
    for each in started:
        each.join()
    return found
