"""A site to crawl, on loopback: every page comes after a fixed delay, whoever else is waiting.

A process of its own: ``python -m clusterkit.ops.compare.site SECONDS PAGES`` prints its address and serves
until its input ends.
"""

from __future__ import annotations

import asyncio
import sys

_PAGE = """<!doctype html>
<html><head><title>Page {page}</title></head>
<body><h1>Page {page}</h1>{links}{text}</body></html>
"""
_TEXT = "<p>Whoever waits for this page waits for its server, not for a processor.</p>\n" * 60
#: Links on a page, to the pages after it.
_LINKS = 5


def page(number: int, pages: int) -> str:
    """Return page ``number`` of a site of ``pages``."""
    links = "".join(
        f'<a href="/{(number + step) % pages}">page {(number + step) % pages}</a> '
        for step in range(1, _LINKS + 1)
    )
    return _PAGE.format(page=number, links=links, text=_TEXT)


async def serve(delay: float, pages: int) -> None:
    """Print the address, then answer each request after ``delay`` seconds, until the input ends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        number = int(request.split()[1].strip(b"/") or b"0")
        await asyncio.sleep(delay)
        body = page(number, pages).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()
    sys.stdout.write(f"http://{host}:{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]), int(sys.argv[2])))
