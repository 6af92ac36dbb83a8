"""An HTTP proxy on loopback that fails the way object stores and networks do, by rules and from a seed.

One request a connection; the request is read whole, then the first rule that applies decides. The draws come from the
seed; which request meets which draw depends on the order in which they arrive.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote

ANSWERS = {
    "503": ("503 Service Unavailable", "SlowDown", "Please reduce your request rate."),
    "429": ("429 Too Many Requests", "TooManyRequests", "Please reduce your request rate."),
    "expired": ("403 Forbidden", "ExpiredToken", "The provided token has expired."),
}
"""Faults that are answers: status, S3's code, message."""
SLOW_PIECES = 12
"""A slow answer comes in so many pieces, `SLOW_PAUSE_S` apart."""
SLOW_PAUSE_S = 0.25


@dataclass(slots=True)
class Rule:
    """When a request whose "METHOD /path" matches meets a fault."""

    fault: str
    """A key of ANSWERS; reset: not passed on, connection reset; lost: done, but the answer is a reset; truncated: half
    of the answer; cut: half of the request is passed on; slow: the answer comes in pieces; unconditional: without
    If-None-Match; before, after: `then` is called before or after the request is passed on."""
    match: str = ""
    share: float = 1.0
    """Of the matching requests."""
    skip: int = 0
    """Matching requests that pass before the rule applies."""
    limit: int | None = None
    """How often it applies."""
    bursts: bool = False
    """Applies in spells of 0.3 to 3 s, with calm spells of 0.5 to 3 s between them."""
    then: Callable[[], object] | None = None
    seen: int = 0
    hits: int = 0
    spell: tuple[float, bool] = (0.0, False)
    """When the present spell ends, and whether the rule applies in it."""

    def applies(self, request: str, draw: random.Random) -> bool:
        if not re.search(self.match, request) or (self.limit is not None and self.hits >= self.limit):
            return False
        self.seen += 1
        if self.seen <= self.skip or draw.random() >= self.share or (self.bursts and not self._in_burst(draw)):
            return False
        self.hits += 1
        return True

    def _in_burst(self, draw: random.Random) -> bool:
        if time.monotonic() >= self.spell[0]:
            burst = not self.spell[1]
            self.spell = (time.monotonic() + draw.uniform(0.3 if burst else 0.5, 3.0), burst)
        return self.spell[1]


@dataclass(slots=True)
class FaultyProxy:
    """Passes everything on to `upstream` (host, port) until it is given `rules`; a thread of its own."""

    upstream: tuple[str, int]
    rules: list[Rule] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    draw: random.Random = field(default_factory=random.Random)
    port: int = 0

    def start(self) -> None:
        """Listen on a free port; returns when it does."""
        listening = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._answer, "127.0.0.1", 0, limit=2**20)
            self.port = server.sockets[0].getsockname()[1]
            listening.set()
            await server.serve_forever()

        threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
        listening.wait()

    def inject(self, rules: list[Rule], seed: int) -> None:
        """From now on these rules, drawing from `seed`."""
        self.draw = random.Random(seed)
        self.rules = rules

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head, body = await _read_request(reader, writer)
            await self._pass_on(head, body, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            _reset(writer)
        finally:
            writer.close()

    async def _pass_on(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        method, path, _ = head.split(b" ", 2)
        request = f"{method.decode()} {unquote(path.decode())}"
        rule = next((rule for rule in self.rules if rule.applies(request, self.draw)), None)
        fault = "" if rule is None else rule.fault
        if fault == "unconditional":
            stripped = re.sub(rb"(?im)^if-none-match:.*\r\n", b"", head)
            fault, head = (fault if stripped != head else ""), stripped
        if fault in ANSWERS:
            answer = _refusal(*ANSWERS[fault], with_body=method != b"HEAD")
        elif fault == "reset":
            answer = b""
        elif fault == "cut":
            await self._upstream(head, body[: len(body) // 2], wait=False)
            answer = b""
        else:
            if fault == "before" and rule is not None and rule.then is not None:
                await asyncio.to_thread(rule.then)
            answer = await self._upstream(head, body)
            if fault == "after" and rule is not None and rule.then is not None:
                await asyncio.to_thread(rule.then)
        if fault == "lost":
            answer = b""
        if fault == "truncated":
            start = answer.find(b"\r\n\r\n") + 4
            if start == len(answer):
                fault = ""  # an answer without a body
            answer = answer[: start + (len(answer) - start) // 2]
        if fault:
            self.injected[fault] += 1
        if not answer:
            _reset(writer)
        elif fault == "slow":
            size = -(-len(answer) // SLOW_PIECES)
            for start in range(0, len(answer), size):
                writer.write(answer[start : start + size])
                await writer.drain()
                await asyncio.sleep(SLOW_PAUSE_S)
        else:
            writer.write(answer)
            await writer.drain()

    async def _upstream(self, head: bytes, body: bytes, *, wait: bool = True) -> bytes:
        reader, writer = await asyncio.open_connection(*self.upstream)
        try:
            writer.write(head + body)
            await writer.drain()
            return await reader.read() if wait else b""
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bytes]:
    """The request's head, made to close the connection after the answer, and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    if re.search(rb"(?im)^expect:\s*100-continue", head):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    length = re.search(rb"(?im)^content-length:\s*(\d+)", head)
    if length:
        body = await reader.readexactly(int(length[1]))
    elif re.search(rb"(?im)^transfer-encoding:.*chunked", head):
        body = await reader.readuntil(b"0\r\n\r\n")
    else:
        body = b""
    head = re.sub(rb"(?im)^(connection|expect):.*\r\n", b"", head)
    return head[:-2] + b"Connection: close\r\n\r\n", body


def _refusal(status: str, code: str, message: str, *, with_body: bool) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>" if with_body else ""
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}"
    ).encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with suppress(OSError):  # the other side was faster
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
