"""The crawler keeps to one site, its rules and its limits, and off private networks.

The site is a real server on this machine; a test describes it page by page.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tasks import addresses
from tasks import crawl as crawling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DRIP_SECONDS = 0.05


@dataclass
class Page:
    """What the site answers; with ``drip`` one byte at a time, from the body or from the headers on."""

    body: str | bytes = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drip: str = ""


@dataclass
class Site:
    """The pages by path, and the requests as they came: path, Host header, time."""

    url: str = ""
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[tuple[str, str, float]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    server: ThreadingHTTPServer | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rpartition(":")[2])

    @property
    def asked(self) -> list[str]:
        """The paths asked for, in order."""
        return [path for path, _, _ in self.requests]

    def encrypt(self, certificate: Path) -> None:
        """Speak TLS from now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        assert self.server
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)

    def html(self, path: str, *links: str, title: str = "") -> None:
        """Put a page there that has these links."""
        anchors = "".join(f'<a href="{link}">x</a>' for link in links)
        self.pages[path] = Page(f"<html><title>{title}</title>{anchors}</html>")


class Handler(BaseHTTPRequestHandler):
    """Answers from the site's pages."""

    site: Site

    def do_GET(self) -> None:
        """Note the request and answer it."""
        self.site.requests.append((self.path, self.headers["Host"], time.monotonic()))
        page = self.site.pages.get(self.path, Page("no such page", 404))
        body = page.body if isinstance(page.body, bytes) else page.body.encode()
        headers = {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(body)),
            **page.headers,
        }
        lines = [
            f"HTTP/1.0 {page.status} X",
            *(f"{name}: {value}" for name, value in headers.items()),
            "",
            "",
        ]
        head = "\r\n".join(lines).encode()
        with contextlib.suppress(OSError):  # the crawler had enough
            self.send(head, slowly=page.drip == "headers")
            self.send(body, slowly=bool(page.drip))

    def send(self, data: bytes, *, slowly: bool) -> None:
        """Write at once, or a byte at a time until the test is over."""
        if not slowly:
            self.wfile.write(data)
            return
        for number in data:
            self.wfile.write(bytes([number]))
            if self.site.closing.wait(DRIP_SECONDS):
                return

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Make a certificate of its own for site.test, with its key in the same file."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("makes a certificate with the command openssl, which is not installed")
    parts = [tmp_path / "key.pem", tmp_path / "certificate.pem"]
    subject = ["-subj", "/CN=site.test", "-addext", "subjectAltName=DNS:site.test"]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", parts[0], "-out", parts[1]], check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_text("".join(part.read_text() for part in parts))
    return both


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name under .test mean this machine."""
    real = socket.getaddrinfo

    def resolve(host: str, *args: Any, **kwargs: Any) -> Any:
        return real("127.0.0.1" if host.endswith(".test") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.fixture
def site() -> Iterator[Site]:
    """Serve a site of no pages but an empty robots.txt on a free port of 127.0.0.1."""
    served = Site(pages={"/robots.txt": Page("", headers={"Content-Type": "text/plain"})})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": served}))
    served.url = f"http://127.0.0.1:{server.server_port}"
    served.server = server
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    served.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


def run(site: Site, path: str = "/", **options: Any) -> dict[str, Any]:
    answer: dict[str, Any] = crawling.crawl(
        site.url + path, **{"delay": 0.1, "allow_private": True, **options}
    )
    assert json.loads(json.dumps(answer)) == answer
    return answer


def paths(site: Site, entries: list[dict[str, Any]]) -> list[str]:
    return [entry["url"].removeprefix(site.url) for entry in entries]


def reasons(site: Site, answer: dict[str, Any]) -> dict[str, str]:
    return dict(
        zip(paths(site, answer["skipped"]), (entry["reason"] for entry in answer["skipped"]), strict=True)
    )


def test_pages_are_listed_with_title_size_and_links(site: Site) -> None:
    site.html("/", "/a", "b?q=1#part", "/a#again", title="  Start &amp;\n here ")
    site.html("/a", title="A")
    site.html("/b?q=1")
    answer = run(site)
    assert paths(site, answer["pages"]) == ["/", "/a", "/b?q=1"]
    assert answer["pages"][0] == {
        "url": site.url + "/",
        "status": 200,
        "title": "Start & here",
        "bytes": len(site.pages["/"].body),
        "links": 3,
    }
    assert answer["pages"][2]["title"] is None
    assert answer["errors"] == answer["skipped"] == answer["redirects"] == []
    assert answer["stopped"] == "nothing left to read"
    assert site.asked == ["/robots.txt", "/", "/a", "/b?q=1"]
    assert site.requests[0][1] == f"127.0.0.1:{site.port}"


def test_it_goes_as_deep_as_asked(site: Site) -> None:
    site.html("/", "/1")
    site.html("/1", "/2", "/")
    site.html("/2", "/3")
    assert paths(site, run(site, depth=0)["pages"]) == ["/"]
    assert paths(site, run(site, depth=2)["pages"]) == ["/", "/1", "/2"]


def test_links_are_relative_to_the_base_of_the_page(site: Site) -> None:
    site.pages["/"] = Page('<base href="/docs/"><a href="x">x</a>')
    site.html("/docs/x")
    assert paths(site, run(site)["pages"]) == ["/", "/docs/x"]


def test_the_start_page_is_the_same_with_and_without_its_slash(site: Site) -> None:
    site.html("/", "/", "#top", "?", "//127.0.0.1:" + str(site.port))
    assert paths(site, run(site, path="")["pages"]) == ["/"]


def test_a_missing_page_is_listed_with_its_status_and_its_links_are_not_followed(site: Site) -> None:
    site.html("/", "/gone")
    site.pages["/gone"] = Page('<a href="/more">', 404)
    assert [(page["status"], page["links"]) for page in run(site)["pages"]] == [(200, 1), (404, 1)]


def test_robots_txt_is_obeyed(site: Site) -> None:
    site.pages["/robots.txt"] = Page(
        "\ufeffUser-agent: *\nDisallow: /private\n\nUser-agent: other\nDisallow: /"
    )
    site.html("/", "/private/x", "/open")
    site.html("/open")
    answer = run(site)
    assert paths(site, answer["pages"]) == ["/", "/open"]
    assert reasons(site, answer) == {"/private/x": "robots.txt"}
    assert "/private/x" not in site.asked


@pytest.mark.parametrize(
    "rules",
    [
        Page("", 503),
        Page("x" * 600_000),
        Page("Disallow: //[\nUser-agent: *\nDisallow: //["),
        Page("", 302, {"Location": "ftp://127.0.0.1/"}),
    ],
)
def test_nothing_is_read_when_robots_txt_cannot_be(site: Site, rules: Page) -> None:
    site.pages["/robots.txt"] = rules
    site.html("/")
    answer = run(site)
    assert answer["pages"] == []
    assert "so nothing is read" in answer["errors"][0]["error"]
    assert reasons(site, answer) == {"/": "robots.txt"}


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_everything_is_allowed_where_there_is_no_robots_txt(site: Site, status: int) -> None:
    site.pages["/robots.txt"] = Page("User-agent: *\nDisallow: /", status)
    site.html("/")
    assert paths(site, run(site)["pages"]) == ["/"]


def test_redirects_of_robots_txt_are_followed(site: Site) -> None:
    site.pages["/robots.txt"] = Page("", 301, {"Location": "/rules"})
    site.pages["/rules"] = Page("User-agent: clusterkit-crawler\nDisallow: /no")
    site.html("/", "/no")
    assert reasons(site, run(site)) == {"/no": "robots.txt"}


def test_requests_keep_their_distance(site: Site) -> None:
    site.html("/", "/1", "/2")
    site.html("/1")
    site.html("/2")
    run(site, delay=0.4)
    times = [at for _, _, at in site.requests]
    assert len(times) == 4
    # When a busy machine's server notices a request says little of when it was made.
    assert all(later - earlier > 0.2 for earlier, later in itertools.pairwise(times))


def test_the_sites_own_crawl_delay_is_kept_if_longer(site: Site) -> None:
    site.pages["/robots.txt"] = Page("User-agent: *\nCrawl-delay: 1")
    site.html("/")
    run(site)
    (_, _, first), (_, _, second) = site.requests
    assert second - first > 0.5


def test_a_crawl_delay_beyond_the_time_limit_ends_the_crawl_at_once(site: Site) -> None:
    site.pages["/robots.txt"] = Page("User-agent: *\nCrawl-delay: 86400")
    site.html("/")
    began = time.monotonic()
    assert run(site, max_seconds=30)["stopped"] == "max_seconds reached, 1 left"
    assert time.monotonic() - began < 5


def test_no_more_pages_are_read_than_allowed(site: Site) -> None:
    site.html("/", *(f"/{number}" for number in range(10)))
    for number in range(10):
        site.html(f"/{number}")
    answer = run(site, max_pages=3)
    assert len(answer["pages"]) == 3
    assert answer["stopped"] == "max_pages reached, 8 left"


def test_other_hosts_and_other_schemes_are_skipped_with_the_reason(site: Site) -> None:
    site.html(
        "/",
        "http://127.0.0.2/",
        f"http://127.0.0.1:{site.port + 1}/",
        "mailto:someone",
        "javascript:void(0)",
        "file:///etc/passwd",
        f"http://user:word@127.0.0.1:{site.port}/",
        "http://127.0.0.1:port/",
        "/" + "long" * 500,
    )
    answer = run(site)
    assert paths(site, answer["pages"]) == ["/"]
    assert answer["skipped_reasons"] == {
        "other host": 2,
        "not http or https": 3,
        "password in the address": 1,
        "not an address": 1,
        "address too long": 1,
    }


def test_long_lists_of_skipped_addresses_are_cut_but_counted(site: Site) -> None:
    site.html("/", *(f"mailto:{number}" for number in range(1000)))
    answer = run(site)
    assert len(answer["skipped"]) == 200
    assert answer["skipped_reasons"] == {"not http or https": 1000}


@pytest.mark.parametrize("length", ["", "5000000"])
def test_a_page_over_the_size_limit_is_skipped(site: Site, length: str) -> None:
    site.html("/", "/big")
    site.pages["/big"] = Page("x" * 5_000_000, headers={"Content-Length": length} if length else {})
    assert reasons(site, run(site, max_page_bytes=10_000)) == {"/big": "too large: more than 10000 bytes"}


def test_what_is_not_html_is_not_read(site: Site) -> None:
    site.html("/", "/picture")
    site.pages["/picture"] = Page(b"\x89PNG", headers={"Content-Type": "image/png"})
    assert reasons(site, run(site)) == {"/picture": "not HTML: image/png"}


def test_a_page_that_could_unpack_to_any_size_is_not_unpacked(site: Site) -> None:
    site.html("/", "/bomb")
    site.pages["/bomb"] = Page(gzip.compress(b"0" * 10_000_000), headers={"Content-Encoding": "gzip"})
    assert reasons(site, run(site)) == {"/bomb": "compressed although asked not to be"}


@pytest.mark.parametrize("drip", ["body", "headers"])
def test_a_page_that_drips_in_is_given_up_in_time(site: Site, drip: str) -> None:
    site.html("/", "/slow", "/next")
    site.pages["/slow"] = Page("x" * 1000, drip=drip)
    site.html("/next")
    began = time.monotonic()
    answer = run(site, timeout=0.5)
    assert time.monotonic() - began < 5
    assert paths(site, answer["pages"]) == ["/", "/next"]
    assert paths(site, answer["errors"]) == ["/slow"]
    assert "Timeout" in answer["errors"][0]["error"]


@pytest.mark.parametrize(
    "body",
    [
        "<![x <a href=/y>",
        "<title>no end",
        "<!doctype",
        "</",
        "&#xfffffffff;<a href='/y",
        "\0\ud800".encode("utf-8", "surrogatepass"),
    ],
)
def test_malformed_pages_are_read_as_far_as_they_go(site: Site, body: str | bytes) -> None:
    site.pages["/"] = Page(body)
    assert len(run(site, depth=0)["pages"]) == 1


@pytest.mark.parametrize("charset", ["latin-1", "no-such-charset", "idna", "rot13"])
def test_a_page_in_any_charset_is_read(site: Site, charset: str) -> None:
    site.pages["/"] = Page(
        b"<title>caf\xe9</title>", headers={"Content-Type": f"text/html; charset={charset}"}
    )
    assert run(site)["pages"][0]["title"].startswith("caf")


def test_a_redirect_is_followed_and_listed(site: Site) -> None:
    site.pages["/"] = Page("", 302, {"Location": "/home"})
    site.html("/home", "/")
    answer = run(site)
    assert paths(site, answer["pages"]) == ["/home"]
    assert answer["redirects"] == [{"url": site.url + "/", "status": 302, "to": "/home"}]


def test_redirects_in_a_circle_end(site: Site) -> None:
    site.pages["/"] = Page("", 302, {"Location": "/b"})
    site.pages["/b"] = Page("", 302, {"Location": "/"})
    answer = run(site)
    assert len(answer["redirects"]) == 2
    assert answer["pages"] == []


def test_the_first_page_may_redirect_to_another_host_and_only_that_one(site: Site) -> None:
    other = f"http://127.0.0.2:{site.port}"
    site.html("/", "/away")
    site.pages["/start"] = Page("", 301, {"Location": f"http://localhost:{site.port}/"})
    site.pages["/away"] = Page("", 301, {"Location": other + "/"})
    answer = run(site, "/start")
    assert [page["url"] for page in answer["pages"]] == [f"http://localhost:{site.port}/"]
    assert site.asked == ["/robots.txt", "/start", "/robots.txt", "/", "/away"]
    assert reasons(site, answer) == {other + "/": "other host"}


def test_a_redirect_to_a_private_address_is_not_followed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    site.pages["/"] = Page("", 302, {"Location": f"http://127.0.0.2:{site.port}/secret"})
    answer = run(site, allow_private=False)
    assert answer["skipped_reasons"] == {"private address": 1}
    assert "127.0.0.2: not a public address" in answer["skipped"][0]["reason"]
    assert site.asked == ["/robots.txt", "/"]


def test_robots_txt_is_not_fetched_from_a_private_address(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    site.pages["/robots.txt"] = Page("", 302, {"Location": f"http://127.0.0.2:{site.port}/secret"})
    answer = run(site, allow_private=False)
    assert "private address" in answer["errors"][0]["error"]
    assert site.asked == ["/robots.txt"]


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0/"])
def test_a_private_address_cannot_be_started_from(url: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be crawled: private address: .*allow_private permits it"):
        crawling.crawl(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://example.org/", "not http or https"),
        ("example.org", "not http or https"),
        ("http://", "no host"),
        ("http://a:b@example.org/", "password in the address"),
        ("http://example.org:99999/", "no such port"),
        ("http://example.org:0/", "no such port"),
        ("http://no-such-host.invalid/", "cannot be crawled"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        crawling.crawl(url)


@pytest.mark.parametrize(
    "options",
    [{"depth": 11}, {"max_pages": 0}, {"delay": 0}, {"timeout": 61}, {"max_seconds": 1e9}, {"depht": 1}],
)
def test_limits_have_limits(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"crawl: "):
        crawling.crawl("http://example.org/", **options)


def test_it_connects_to_the_address_it_checked_even_if_the_name_changes_its_meaning(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["127.0.0.1", *["127.0.0.2"] * 100])
    asked = []

    def rebinding(host: str, port: int, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **kw: (rebinding if host == "rebind.test" else real)(host, *args, **kw),
    )
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    site.html("/", "/a")
    site.html("/a")
    answer: dict[str, Any] = crawling.crawl(f"http://rebind.test:{site.port}/", delay=0.1)
    assert len(answer["pages"]) == 2
    assert asked == ["rebind.test"]
    assert {host for _, host, _ in site.requests} == {f"rebind.test:{site.port}"}


def test_no_proxy_is_taken_from_the_environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site.html("/")
    assert paths(site, run(site)["pages"]) == ["/"]


@pytest.mark.usefixtures("names")
def test_a_certificate_must_be_the_names_and_known(
    site: Site, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.html("/")
    site.encrypt(certificate)

    def crawl_as(host: str) -> dict[str, Any]:
        answer: dict[str, Any] = crawling.crawl(f"https://{host}:{site.port}/", delay=0.1, allow_private=True)
        return answer

    unknown = crawl_as("site.test")
    assert unknown["pages"] == []
    assert "CERTIFICATE_VERIFY_FAILED" in unknown["errors"][0]["error"]
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert [page["status"] for page in crawl_as("site.test")["pages"]] == [200]
    other = crawl_as("other.test")
    assert other["pages"] == []
    assert "CERTIFICATE_VERIFY_FAILED" in other["errors"][0]["error"]
