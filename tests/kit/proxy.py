"""A proxy before an object store that does what networks and stores do: seeded, one request in a few."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("503", "reset", "truncated", "delayed", "reply lost", "404")
DELAY = 0.3  # seconds
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"


class Proxy:
    """Listens on a port of this machine and passes requests on to `target`, `http://HOST:PORT`.

    Attributes:
        share: of the requests that meet a fault. happened: how often, by fault.
    """

    def __init__(self, target: str, seed: int, share: float, faults: Sequence[str] = FAULTS):
        self.target, self.share, self.faults = urlsplit(target).netloc, share, faults
        self.rng, self.lock = random.Random(seed), threading.Lock()
        self.happened: Counter[str] = Counter()
        self.denied: set[str] = set()  # what was said once not to be there
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                proxy.handle(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault(self, request: BaseHTTPRequestHandler) -> str | None:
        """What happens to a request; an object is denied once, and only when it is read or looked at."""
        with self.lock:
            if self.rng.random() >= self.share:
                return None
            fault = self.rng.choice(self.faults)
            if fault == "404":
                if (
                    request.command not in ("GET", "HEAD")
                    or request.path in self.denied
                    or "?" in request.path
                ):
                    return None
                self.denied.add(request.path)
            if fault == "truncated" and request.command != "GET":
                fault = "reset"
            self.happened[fault] += 1
            return fault

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = read_body(request)  # also where it is not wanted: the client is sending it
        fault = self.fault(request)
        if fault == "503":
            answer(request, 503, [], SLOW_DOWN)
        elif fault == "404":
            answer(request, 404, [], NO_SUCH_KEY)
        elif fault == "reset":
            reset(request)
        else:
            if fault == "delayed":
                time.sleep(DELAY)
            response, content = self.passed_on(request, body)
            length = response.getheader("Content-Length") if request.command == "HEAD" else None
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP]
            if fault == "reply lost":
                reset(request)
            elif fault == "truncated" and content:
                answer(request, response.status, headers, content, sent=len(content) // 2)
                reset(request)
            else:
                answer(request, response.status, headers, content, length)

    def passed_on(self, request: BaseHTTPRequestHandler, body: bytes | None) -> tuple[HTTPResponse, bytes]:
        """The request as it came, chunks and signatures too; the reply is whole."""
        connection = HTTPConnection(self.target)
        connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name.lower() not in HOP:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content


HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
"""Headers between neighbours; the length is written anew."""


def read_body(request: BaseHTTPRequestHandler) -> bytes | None:
    """What is sent with a request, by length or in HTTP's chunks; those of aws-chunked stay as they are."""
    if "chunked" in request.headers.get("Transfer-Encoding", ""):
        parts = []
        while length := int(request.rfile.readline().split(b";")[0], 16):
            parts.append(request.rfile.read(length))
            request.rfile.readline()
        while request.rfile.readline().strip():
            pass
        return b"".join(parts)
    length = request.headers.get("Content-Length")
    return None if length is None else request.rfile.read(int(length))


def answer(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: list[tuple[str, str]],
    content: bytes,
    length: str | None = None,
    sent: int | None = None,
) -> None:
    """Send a reply. length: where there is no content, as to HEAD. sent: bytes of the content, if not all."""
    request.send_response_only(status)
    for name, value in headers:
        request.send_header(name, value)
    if status != 204:
        request.send_header("Content-Length", str(len(content) if length is None else length))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content[:sent])
        request.wfile.flush()


def reset(request: BaseHTTPRequestHandler) -> None:
    """Close the connection with RST, not as one that has said everything."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.close_connection = True
    request.connection.close()
