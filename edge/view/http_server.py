"""A small HTTP server for this machine's own browsers and scrapers; standard library only.

It binds to loopback unless told otherwise, answers a bounded number of clients, each in a thread that a slow one
cannot hold for ever, and on loopback only to requests that name this machine, so that no web page of a stranger reads
it by giving its own name our address.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

from ...hand.whole import refusal

TIMEOUT_S = 5.0  # of a client that does not read or write, and for all of its request
MOST_AT_ONCE = 16
POLL_S = 0.1


class ServeError(RuntimeError):
    """What was asked for cannot be served; one line."""


def local_address(option: str, host: str, port: int, insecure: bool) -> str:
    """The host as a number. Raises ServeError for one beyond this machine, unless it is insecure on purpose."""
    host = "127.0.0.1" if host in ("", "localhost") else host.strip("[]")
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ServeError(
            f"{option} {host}: expected a numeric address of this machine, for example 127.0.0.1"
        ) from None
    if not is_local and not insecure:
        raise ServeError(
            f"{option} {host}: anyone who can reach this address could read it; take 127.0.0.1 (from elsewhere: "
            f"ssh -L {port}:127.0.0.1:{port} HOST), or add --insecure on a network you trust"
        )
    return host


class LocalServer(ThreadingHTTPServer):
    """`with LocalServer("127.0.0.1", 8080, Handler) as server: server.start()`; port 0 takes any, see `url`.

    Raises ServeError where it cannot bind.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = MOST_AT_ONCE

    def __init__(self, host: str, port: int, handler: type[Handler], option: str = "--port") -> None:
        self._free = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._thread: threading.Thread | None = None
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), handler)
        except OSError as error:
            why = refusal(error)
            raise ServeError(f"{option} {host}:{port}: {why}; take another, or stop what uses it") from None
        self.is_open = True
        self.host, self.is_local = host, ipaddress.ip_address(host).is_loopback
        self.address = f"[{host}]:{self.server_port}" if ":" in host else f"{host}:{self.server_port}"
        self.url = f"http://{self.address}/"

    def server_bind(self) -> None:
        """Without the look-up of this machine's name that the standard library does, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def start(self) -> None:
        """Answer in a thread until `server_close`."""
        self._thread = threading.Thread(target=self.serve_forever, args=(POLL_S,), name="http", daemon=True)
        self._thread.start()

    def server_close(self) -> None:
        """Stop answering and free the port."""
        self.is_open = False
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
            self._thread = None
        super().server_close()

    def get_request(self) -> tuple[Any, Any]:
        """The next client."""
        try:
            return super().get_request()
        except OSError:  # too many files are open; who waits is looked at again at once
            time.sleep(POLL_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, if one is free."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then free the thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's trouble; a bug is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers GET by `get(path)`; a subclass has that."""

    server: LocalServer
    timeout = TIMEOUT_S
    headers_of_all: ClassVar[dict[str, str]] = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    def get(self, path: str) -> None:
        """Answer a GET of this path, without its query."""
        raise NotImplementedError

    def setup(self) -> None:
        super().setup()
        self._late = threading.Timer(self.timeout, self._hang_up)  # a byte now and then is no request
        self._late.daemon = True
        self._late.start()

    def finish(self) -> None:
        self._late.cancel()
        super().finish()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        self._late.cancel()
        if self.server.is_local and not _is_loopback(self.headers.get("Host", "")):
            self.answer(403, "text/plain", b"open it by the name localhost or 127.0.0.1\n")
            return
        try:
            path = urlsplit(self.path).path
        except ValueError:  # "http://["
            self.answer(400, "text/plain", b"this is no address\n")
            return
        self.get(path)

    def answer(self, code: int, kind: str, body: bytes | None) -> None:
        """Send the head, and the body if there is one; without, the caller writes it until it closes."""
        self.send_response(code)
        self.send_header("Content-Type", kind)
        for name, value in self.headers_of_all.items():
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body is not None:
            self.wfile.write(body)

    def version_string(self) -> str:
        return "edge-hand"

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not written."""


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
