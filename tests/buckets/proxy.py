"""A proxy that stands between a client of buckets and its server, and does harm.

It knows just enough of HTTP/1.1 to tell where a request and its answer end. What it
does to a request is a pure function of its number, so that a test can be run again.
"""

import asyncio
import collections
import dataclasses
import threading
from collections.abc import Callable

HEAD_END = b"\r\n\r\n"
ERROR = (
    b"HTTP/1.1 %d %s\r\nContent-Type: application/xml\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)
STATUS = {500: b"Internal Server Error", 503: b"Service Unavailable"}

FAULTS = ("500", "503", "reset", "lost", "cut", "silent")
"""Answered with 500 or 503; cut off before the server hears of it; done by the server,
whose answer is lost; its answer cut in the middle; taken, and never answered."""


@dataclasses.dataclass
class Harm:
    """What is done to requests.

    Attributes:
      every: each so many requests one comes to harm; None for none.
      faults: what comes to those, in turn.
      delay_s: how long each request waits.
      matching: the requests that may come to harm, by their first line.
    """

    every: int | None = None
    faults: tuple[str, ...] = FAULTS
    delay_s: float = 0.0
    matching: Callable[[str], bool] = lambda line: True


class Proxy:
    """Serves on a port of its own, in a thread, until it is stopped.

    Attributes:
      harm: what is done to requests; may be changed at any time.
      done: how often each fault has been done.
      requests: first lines of all requests.
    """

    def __init__(self, server_port: int, port: int = 0) -> None:
        self.harm = Harm()
        self.done: collections.Counter[str] = collections.Counter()
        self.requests: list[str] = []
        self._counted = 0
        self._tasks: set[asyncio.Task[None] | None] = set()
        self._server_port = server_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", port, limit=1 << 20),
            self._loop,
        ).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def spare(self) -> None:
        """Does no more harm, and forgets what was done."""
        self.harm = Harm()
        self.done.clear()
        self.requests.clear()
        self._counted = 0

    def stop(self) -> None:
        """Ends the thread and all connections."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fault(self, line: str) -> str | None:
        """Says what comes to a request."""
        self.requests.append(line)
        harm = self.harm
        if harm.every is None or not harm.matching(line):
            return None
        self._counted += 1
        if self._counted % harm.every:
            return None
        fault = harm.faults[(self._counted // harm.every - 1) % len(harm.faults)]
        self.done[fault] += 1
        return fault

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serves one connection, to which one of the server belongs."""
        task = asyncio.current_task()
        self._tasks.add(task)  # the loop alone would let go of one that waits
        back: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head = await reader.readuntil(HEAD_END)
                line = head.split(b"\r\n", 1)[0].decode("latin-1")
                fault = self._fault(line)
                await asyncio.sleep(self.harm.delay_s)
                if _header(head, b"expect") and fault != "reset":
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                if fault == "reset":
                    writer.transport.abort()
                    return
                if fault == "silent":
                    await reader.read()  # until the client gives up
                    return
                if fault in ("500", "503"):
                    await _copy_body(reader, head, None)
                    writer.write(ERROR % (int(fault), STATUS[int(fault)]))
                    await writer.drain()
                    return
                if back is None:
                    back = await asyncio.open_connection(
                        "127.0.0.1", self._server_port, limit=1 << 20
                    )
                if not await self._forward(head, fault, (reader, writer), back):
                    if fault is not None:
                        writer.transport.abort()
                    return
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # either side has closed the connection, or the proxy ends
        finally:
            for one in (writer, back[1] if back else None):
                if one is not None:
                    one.close()
            self._tasks.discard(task)

    async def _forward(
        self,
        head: bytes,
        fault: str | None,
        front: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        back: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> bool:
        """Hands a request on, and its answer back, or what the fault leaves of it.

        Returns:
          Whether the connection may be used again.
        """
        back[1].write(head)
        # A server may refuse a request before it has read all of it.
        sent = asyncio.ensure_future(_copy_body(front[0], head, back[1]))
        try:
            whole = await _answer(back[0], head)
            if fault == "cut":
                whole = whole[: max(1, len(whole) * 2 // 3)]
            if fault != "lost":
                front[1].write(whole)
                await front[1].drain()
            return fault is None and sent.done() and sent.exception() is None
        finally:
            sent.cancel()
            await asyncio.gather(sent, return_exceptions=True)


async def _answer(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """Reads the answer to a request of that head."""
    while True:
        answer = await reader.readuntil(HEAD_END)
        status = answer.split(b" ")[1]
        if status != b"100":
            break
    if head.startswith(b"HEAD ") or status in (b"204", b"304"):
        return answer
    return answer + await _body(reader, answer)


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


async def _copy_body(
    reader: asyncio.StreamReader, head: bytes, writer: asyncio.StreamWriter | None
) -> None:
    """Reads the body that belongs to a head, and writes it on."""
    body = await _body(reader, head)
    if writer is not None:
        writer.write(body)
        await writer.drain()


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """Reads the body that belongs to a head, as it travels."""
    if (_header(head, b"transfer-encoding") or b"").lower() == b"chunked":
        return await _chunks(reader)
    length = int(_header(head, b"content-length") or 0)
    return await reader.readexactly(length) if length else b""


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    whole = bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        whole += line
        size = int(line.split(b";")[0], 16)
        if size:
            whole += await reader.readexactly(size + 2)
            continue
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            whole += line  # a trailer
        whole += line
        return bytes(whole)
