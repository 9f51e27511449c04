"""The cluster's half of fetching a report: `python -m kintsugi.jobs.send RUN` prints its files for `submit`.

Each file is one line, MARK NAME SHA-256 BASE64, in a log that says other things as well.
"""

import base64
import hashlib
import sys

from kintsugi.pipeline.storage.location import at

MARK = "kintsugi-report"
FILES = ("report.html", "report.md", "metrics.json", "metrics.csv", "metrics.tex", "pictures.png")


def send(run: str) -> None:
    """Print the files of a run's report that there are."""
    for name in FILES:
        file = at(run) / "report" / name
        if file.exists():
            content = file.read_bytes()
            print(MARK, name, hashlib.sha256(content).hexdigest(), base64.b64encode(content).decode())


def receive(log: str) -> dict[str, bytes]:
    """The files in a log, by name; raises a ValueError if one did not arrive as it was sent."""
    files = {}
    for line in log.splitlines():
        if line.startswith(MARK):
            _, name, sha256, text = line.split(" ")
            content = base64.b64decode(text, validate=True)
            if name not in FILES or hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError(f"{name} did not arrive as it was sent")
            files[name] = content
    return files


if __name__ == "__main__":
    send(sys.argv[1])
