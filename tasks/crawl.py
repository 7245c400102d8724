"""A polite crawler of one site: it keeps to robots.txt, to one host, to limits, and takes its time."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import asdict, dataclass, field
from html.parser import HTMLParser
from typing import Annotated, Any
from urllib.robotparser import RobotFileParser

import httpx
from pydantic import Field

from tasks.addresses import AddressRefusedError
from tasks.app import app
from tasks.checks import checked
from tasks.fetch import AGENT, FAILURES, Answer, Fetcher, OutOfTimeError, SkipError

# RFC 9309: a crawler reads at least 500 KiB of robots.txt and follows at least five redirects.
ROBOTS_BYTES = 500 * 1024
MAX_REDIRECTS = 5
# These keep the answer to about 1 MB and bound the memory of a crawl.
MAX_PAGES = 300
MAX_URL = 1000
MAX_TEXT = 200
MAX_LISTED = 200
MAX_WAITING = 10_000
MAX_PORT = 65_535
DEFAULT_PORTS = {"http": 80, "https": 443}
HTML_TYPES = ("text/html", "application/xhtml+xml")


@dataclass
class Summary:
    """What a crawl found. ``skipped`` lists the first 200; ``skipped_reasons`` counts all."""

    start: str
    pages: list[dict[str, Any]] = field(default_factory=list)
    redirects: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    skipped_reasons: dict[str, int] = field(default_factory=dict)
    stopped: str = "nothing left to read"

    def skip(self, url: str, skip: SkipError) -> None:
        """Note that ``url`` is not read, and why."""
        self.skipped_reasons[skip.reason] = self.skipped_reasons.get(skip.reason, 0) + 1
        if len(self.skipped) < MAX_LISTED:
            self.skipped.append({"url": url[:MAX_TEXT], "reason": str(skip)[:MAX_TEXT]})

    def fail(self, url: httpx.URL, error: str) -> None:
        """Note that reading ``url`` failed."""
        self.errors.append({"url": str(url), "error": error[:MAX_TEXT]})


@app.task
@checked
def crawl(  # noqa: PLR0913 - each is a limit that somebody wants to set
    url: Annotated[str, Field(min_length=1, max_length=MAX_URL)],
    *,
    depth: Annotated[int, Field(ge=0, le=10)] = 2,
    max_pages: Annotated[int, Field(ge=1, le=MAX_PAGES)] = 50,
    max_page_bytes: Annotated[int, Field(ge=1024, le=10 * 1024 * 1024)] = 1024 * 1024,
    max_seconds: Annotated[float, Field(ge=1, le=1800)] = 300.0,
    timeout: Annotated[float, Field(ge=0.1, le=60)] = 10.0,
    delay: Annotated[float, Field(ge=0.1, le=60)] = 1.0,
    allow_private: bool = False,
) -> dict[str, Any]:
    """Read the site of ``url`` from there on, up to ``depth`` links away.

    Seconds: ``timeout`` for one request, ``delay`` between two (more if robots.txt says so),
    ``max_seconds`` in all. ``max_pages`` counts every request for a page, redirects and errors too.
    Returns a ``Summary`` as JSON; what cannot be read is an entry in it. An address that no crawl can
    begin at (no such host, or a private one without ``allow_private``) is a ``ValueError``.
    """
    fetcher = Fetcher(timeout=timeout, delay=delay, max_seconds=max_seconds, allow_private=allow_private)
    with fetcher:
        try:
            job = _Crawl(_address(httpx.URL(url)), fetcher, depth, max_pages, max_page_bytes)
            job.check_address(job.site)
        except (httpx.InvalidURL, ValueError, OSError, SkipError) as error:
            message = f"crawl: {url!r} cannot be crawled: {error}"
            raise ValueError(message) from None
        return asdict(job.run())


class _Crawl:
    """One crawl: what is waiting, what was seen, what was found."""

    def __init__(
        self, start: httpx.URL, fetcher: Fetcher, depth: int, max_pages: int, max_page_bytes: int
    ) -> None:
        self.fetcher, self.site = fetcher, start
        self.depth, self.max_pages, self.max_page_bytes = depth, max_pages, max_page_bytes
        self.polite_delay = fetcher.delay
        self.summary = Summary(str(start))
        self.waiting: deque[tuple[httpx.URL, int]] = deque([(start, 0)])
        self.seen = {str(start)}
        self.robots: dict[tuple[str, str, int], _Rules] = {}

    def run(self) -> Summary:
        """Read until nothing is left or a limit is reached."""
        requests = 0
        while self.waiting:
            if requests >= self.max_pages:
                self.summary.stopped = f"max_pages reached, {len(self.waiting)} left"
                break
            url, depth = self.waiting.popleft()
            try:
                requests += self._visit(url, depth)
            except OutOfTimeError:
                self.summary.stopped = f"max_seconds reached, {len(self.waiting) + 1} left"
                break
        return self.summary

    def check_address(self, url: httpx.URL) -> None:
        """Raise ``SkipError`` if ``url`` leads to an address that must not be connected to."""
        try:
            self.fetcher.addresses(url.raw_host.decode("ascii"), _port(url))
        except AddressRefusedError as refusal:
            raise SkipError("private address", f": {refusal}") from None

    def _visit(self, url: httpx.URL, depth: int) -> bool:
        """Read one page and queue what it leads to; False if it was not even asked for."""
        asked = False
        try:
            self.check_address(url)
            self._check_robots(url)
            asked = True
            answer = self.fetcher.get(url, self.max_page_bytes, HTML_TYPES)
        except SkipError as skip:
            self.summary.skip(str(url), skip)
            return asked
        except FAILURES as error:
            self.summary.fail(url, f"{type(error).__name__}: {error}")
            return True
        if answer.location is None:
            self._read_page(answer, depth)
        else:
            self._redirect(answer, answer.location, depth)
        return True

    def _redirect(self, answer: Answer, location: str, depth: int) -> None:
        self.summary.redirects.append(
            {"url": str(answer.url), "status": answer.status, "to": location[:MAX_URL]}
        )
        # example.org leads to www.example.org: until the first page, the site may turn out another.
        moving = not self.summary.pages and len(self.summary.redirects) <= MAX_REDIRECTS
        self._enqueue(answer.url, location, depth, moving=moving)

    def _read_page(self, answer: Answer, depth: int) -> None:
        reader = _Reader(answer.text)
        self.summary.pages.append(
            {
                "url": str(answer.url),
                "status": answer.status,
                "title": " ".join(reader.title.split())[:MAX_TEXT] or None,
                "bytes": len(answer.body),
                "links": len(reader.links),
            }
        )
        if depth >= self.depth or answer.status >= httpx.codes.BAD_REQUEST:
            return
        for link in reader.links:
            self._enqueue(answer.url, link, depth + 1, base=reader.base)

    def _enqueue(
        self, page: httpx.URL, link: str, depth: int, *, base: str = "", moving: bool = False
    ) -> None:
        try:
            url = _address(page.join(base).join(link.strip()))
            if moving:
                self.site = url
            if str(url) in self.seen:
                return
            self.seen.add(str(url))
            self._check_room(url)
        except (httpx.InvalidURL, ValueError) as error:
            self.summary.skip(link, SkipError("not an address", f": {error}"))
        except SkipError as skip:
            self.summary.skip(link, skip)
        else:
            self.waiting.append((url, depth))

    def _check_room(self, url: httpx.URL) -> None:
        if not _same_site(url, self.site):
            raise SkipError("other host")
        if len(self.waiting) >= MAX_WAITING:
            raise SkipError("too many addresses waiting")

    def _check_robots(self, url: httpx.URL) -> None:
        key = (url.scheme, url.host, _port(url))
        if key not in self.robots:
            self.robots[key] = self._read_robots(url.copy_with(raw_path=b"/robots.txt"))
        rules = self.robots[key]
        self.fetcher.delay = max(self.polite_delay, float(rules.crawl_delay(AGENT) or 0))
        if not rules.can_fetch(AGENT, str(url)):
            raise SkipError("robots.txt")

    def _read_robots(self, url: httpx.URL) -> _Rules:
        """Read the rules as RFC 9309 has it: 4xx allows everything; 5xx or no answer, nothing."""
        rules, problem = _Rules(), ""
        try:
            answer = self._follow(url)
            if httpx.codes.is_success(answer.status):
                rules.parse(answer.text.removeprefix("\ufeff").splitlines())
            elif httpx.codes.is_server_error(answer.status):
                problem = f"status {answer.status}"
        except (*FAILURES, httpx.InvalidURL, ValueError, SkipError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            self.summary.fail(url, f"so nothing is read: {problem}")
        rules.disallow_all = bool(problem)
        rules.allow_all = not problem and not rules.mtime()
        return rules

    def _follow(self, url: httpx.URL) -> Answer:
        answer = self.fetcher.get(url, ROBOTS_BYTES)
        for _ in range(MAX_REDIRECTS):
            if answer.location is None:
                break
            target = _address(answer.url.join(answer.location))
            self.check_address(target)
            answer = self.fetcher.get(target, ROBOTS_BYTES)
        return answer


class _Rules(RobotFileParser):
    """The robots.txt of one origin; it has these attributes, if undocumented."""

    allow_all: bool
    disallow_all: bool


class _Reader(HTMLParser):
    """Collects a page's title, its links in order, and what they are relative to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.title, self.base, self.in_title = "", "", False
        self.links: list[str] = []
        # Some malformed declarations ("<![x") fail an assertion in html.parser: what was read counts.
        with contextlib.suppress(AssertionError):
            self.feed(text)
            self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        self.in_title = tag == "title" and not self.title
        if tag == "a" and href:
            self.links.append(href)
        elif tag == "base" and href and not self.base:
            self.base = href

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self.in_title = False

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title += data


def _address(url: httpx.URL) -> httpx.URL:
    """Return ``url`` without its fragment; refuse what no crawler should ask for."""
    if url.scheme not in DEFAULT_PORTS:
        raise SkipError("not http or https")
    if not url.host:
        raise SkipError("no host")
    if url.userinfo:
        raise SkipError("password in the address")
    if url.port is not None and not 1 <= url.port <= MAX_PORT:
        raise SkipError("no such port")
    if len(str(url)) > MAX_URL:
        raise SkipError("address too long")
    # The path is set to itself because "http://host" has none, yet is the same page as "http://host/".
    return url.copy_with(fragment=None, raw_path=url.raw_path)


def _port(url: httpx.URL) -> int:
    return url.port or DEFAULT_PORTS[url.scheme]


def _same_site(one: httpx.URL, other: httpx.URL) -> bool:
    """Compare host and port; http and https on their own ports are the same site."""
    same_port = _port(one) == _port(other) or (one.port is None and other.port is None)
    return one.host == other.host and same_port
