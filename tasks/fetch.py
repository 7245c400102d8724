"""Fetches a stranger's pages for a task: from checked addresses, within bounds of size and time.

It stands on httpx's engine (httpcore) instead of its client, because the engine lets the check sit
where the connection is made, and the deadline where the bytes arrive. No proxy is taken from the
environment: it would make the connection in place of the checked one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import httpcore
import httpx

from tasks.addresses import resolve

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable

AGENT = "clusterkit-crawler"
FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError)


class SkipError(Exception):
    """An address is not read; ``reason`` is one of a few, ``detail`` adds to it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}{detail}")
        self.reason, self.detail = reason, detail


class OutOfTimeError(Exception):
    """The time for the whole crawl is over."""


@dataclass(frozen=True)
class Answer:
    """What came back; ``location`` is where a redirect leads, and then the body is not read."""

    url: httpx.URL
    status: int
    location: str | None
    body: bytes
    encoding: str

    @property
    def text(self) -> str:
        """The body as text; what does not fit the encoding is replaced."""
        try:
            return self.body.decode(self.encoding, "replace")
        except (LookupError, UnicodeError):  # unknown, or "idna", which replaces nothing
            return self.body.decode("utf-8", "replace")


class Fetcher:
    """Makes one crawl's requests, one at a time, with a pause before each but the first.

    Seconds: ``timeout`` for each request in all, ``max_seconds`` from now for all of them;
    ``delay`` between the beginnings of two, and it may be raised on the way.
    """

    def __init__(self, *, timeout: float, delay: float, max_seconds: float, allow_private: bool) -> None:
        self.timeout, self.delay, self.allow_private = timeout, delay, allow_private
        self.end = time.monotonic() + max_seconds
        self.give_up_at = self.end
        self.last_request: float | None = None
        self.resolved: dict[tuple[str, int], list[str]] = {}
        self.connections = httpcore.ConnectionPool(
            max_connections=1,
            network_backend=_CheckedNetwork(self.addresses, self.time_left),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connections.close()

    def addresses(self, host: str, port: int) -> list[str]:
        """Return where ``host`` may be connected to; the name is looked up once in a crawl.

        Raises ``AddressRefusedError`` or ``OSError`` as ``resolve`` does.
        """
        if (host, port) not in self.resolved:
            self.resolved[host, port] = resolve(host, port, allow_private=self.allow_private)
        return self.resolved[host, port]

    def time_left(self) -> float:
        """Seconds the present request may still take."""
        return self.give_up_at - time.monotonic()

    def get(self, url: httpx.URL, max_bytes: int, types: tuple[str, ...] = ()) -> Answer:
        """Fetch ``url``, at most ``max_bytes`` of one of ``types``; redirects are not followed.

        Raises ``SkipError`` for what is not to be read, ``AddressRefusedError``, one of
        ``FAILURES`` for what cannot be, ``OutOfTimeError`` when the crawl has to end.
        """
        self._pause()
        self.give_up_at = min(time.monotonic() + self.timeout, self.end)
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        # Compressed, a small answer could unpack to any size.
        headers: dict[bytes | str, bytes | str] = {
            "Host": url.netloc.decode("ascii"),
            "User-Agent": AGENT,
            "Accept-Encoding": "identity",
        }
        with self.connections.stream("GET", target, headers=headers) as response:
            head = httpx.Response(response.status, headers=response.headers)
            if head.has_redirect_location:
                return Answer(url, head.status_code, head.headers["Location"], b"", "utf-8")
            _check_head(head, types)
            body = _limited(response.iter_stream(), max_bytes)
        return Answer(url, head.status_code, None, body, head.charset_encoding or "utf-8")

    def _pause(self) -> None:
        now = time.monotonic()
        begin = now if self.last_request is None else max(now, self.last_request + self.delay)
        if begin >= self.end:
            raise OutOfTimeError
        time.sleep(begin - now)
        self.last_request = begin


class _CheckedNetwork(httpcore.NetworkBackend):
    """Connects to a checked address of a host, never to whatever its name means by then."""

    def __init__(self, addresses: Callable[[str, int], list[str]], time_left: Callable[[], float]) -> None:
        self.addresses, self.time_left = addresses, time_left
        self.plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline is the request's, not a step's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Try the addresses in turn; raises what the last one raised."""
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in self.addresses(host, port):
            try:
                seconds = _positive(self.time_left(), httpcore.ConnectTimeout)
                stream = self.plain.connect_tcp(address, port, seconds, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self.time_left)
        raise failure


class _TimedStream(httpcore.NetworkStream):
    """A connection on which every step ends by the request's deadline, however slowly bytes drip."""

    def __init__(self, stream: httpcore.NetworkStream, time_left: Callable[[], float]) -> None:
        self.stream, self.time_left = stream, time_left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self.stream.read(max_bytes, _positive(self.time_left(), httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self.stream.write(buffer, _positive(self.time_left(), httpcore.WriteTimeout))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        seconds = _positive(self.time_left(), httpcore.ConnectTimeout)
        return _TimedStream(self.stream.start_tls(ssl_context, server_hostname, seconds), self.time_left)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _positive(seconds: float, error: type[httpcore.TimeoutException]) -> float:
    if seconds <= 0:
        raise error("not there in time")
    return seconds


def _check_head(head: httpx.Response, types: tuple[str, ...]) -> None:
    content_type = head.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if types and content_type not in types:
        raise SkipError("not HTML", f": {content_type[:100] or 'no type given'}")
    if head.headers.get("Content-Encoding", "").lower() not in ("", "identity"):
        raise SkipError("compressed although asked not to be")


def _limited(parts: Iterable[bytes], max_bytes: int) -> bytes:
    body = bytearray()
    for part in parts:
        body += part
        if len(body) > max_bytes:
            raise SkipError("too large", f": more than {max_bytes} bytes")
    return bytes(body)
