"""A page in a browser."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def assert_self_contained(html: str) -> None:
    """A page names no address and may run one script, its own."""
    assert "http://" not in html
    assert "https://" not in html
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    )


class Browser:
    """A headless Chromium in which no name resolves, driven by its DevTools protocol over two pipes."""

    def __init__(self, profile: Path):
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            pytest.skip("no Chromium is installed")
        theirs, self.commands = os.pipe()
        self.answers, ours = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        command = [program, *options, rules, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "bash", *command, "about:blank"],
            pass_fds=(theirs, ours),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(ours)
        self.number, self.waiting, self.session = 0, b"", {}
        self.console: list[str] = []
        self.loaded = False
        (page,) = (t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Log", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command; what happens before it is noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.message()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            part = os.read(self.answers, 1 << 20)
            assert part, "the browser is gone"
            self.waiting += part
        content, _, self.waiting = self.waiting.partition(b"\0")
        found = json.loads(content)
        if found.get("method") == "Log.entryAdded":
            self.console.append(found["params"]["entry"]["text"])
        if found.get("method") == "Runtime.exceptionThrown":
            self.console.append(found["params"]["exceptionDetails"]["text"])
        self.loaded |= found.get("method") == "Page.loadEventFired"
        return found

    def open(self, file: Path, place: str = "", width: int = 1200) -> None:
        """Load a page; the console is that of this page."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        for url in ("about:blank", file.as_uri() + place):  # another place in the same page loads nothing
            self.console.clear()
            self.loaded = False
            self("Page.navigate", url=url)
            while not self.loaded:
                self.message()

    def evaluate(self, script: str) -> Any:
        found = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, pressed: bool) -> None:
        button = {"button": "left", "buttons": int(pressed), "clickCount": 1}
        self("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **button)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
