"""A TCP proxy that can do to connections what a bad network does."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

#: Longer than any command to a proxy takes on a busy machine.
_PATIENCE = 15.0


def bound(host: str, port: int) -> socket.socket:
    """A socket that has its address, but does not listen: whoever connects is refused."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((host, port))
    return made


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    abandoned: bool = False
    released: asyncio.Event = field(default_factory=asyncio.Event)
    pumps: list[asyncio.Task[None]] = field(default_factory=list)


class Proxy:
    """Forwards connections to a PostgreSQL server, until told otherwise. A context manager; use it from any thread.

    Args:
        dsn: The server, by its socket or by TCP.
        bind: Makes the socket to listen on, for an address and a port; 0: any port.
        host: The address to listen on.
    """

    def __init__(self, dsn: str, bind: Callable[[str, int], socket.socket] = bound, host: str = "127.0.0.1") -> None:
        self._given = {name: value for name, value in conninfo_to_dict(dsn).items() if value is not None}
        self._bind = bind
        self._host = host
        self._socket = bind(host, 0)
        self.port: int = self._socket.getsockname()[1]
        self._links: set[_Link] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._delay = 0.0
        self._up = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._flowing: asyncio.Event
        self._is_accepting = False
        self._thread = threading.Thread(target=self._main, name=f"proxy {self.port}", daemon=True)

    @property
    def dsn(self) -> str:
        """The server, by way of this proxy."""
        way = {"host": self._host, "port": str(self.port), "sslmode": "disable", "gssencmode": "disable"}
        return make_conninfo("", **{**self._given, **way})

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._links)

    # What can be done to connections

    def cut(self) -> None:
        """Reset every connection, at both ends; new ones are accepted."""
        self._do(self._cut())

    def refuse(self) -> None:
        """Refuse new connections; the ones that there are stay."""
        self._do(self._refuse())

    def stall(self) -> None:
        """Take what comes and forward nothing, not even the end of a connection: a hanging network."""
        self._do(self._set_flowing(flowing=False))

    def delay(self, seconds: float) -> None:
        """Hold everything back for so long."""
        self._delay = seconds

    def half_close(self, towards: Literal["client", "server"]) -> None:
        """Tell one end of each connection that the other one will send no more; the other way stays open."""
        self._do(self._half_close(towards))

    def abandon(self) -> None:
        """Reset the clients' ends and tell the server nothing: it goes on believing in its connections."""
        self._do(self._abandon())

    def heal(self) -> None:
        """Forward again, at full speed, and accept; what was held back arrives, abandoned connections end."""
        self._delay = 0.0
        self._do(self._heal())

    # How

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(_PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    def _main(self) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._loop.run_until_complete(self._accept())
        self._up.set()
        self._loop.run_forever()

    async def _accept(self) -> None:
        # No asyncio.Server: one that is closed while it accepts leaves a connection open that nobody knows.
        if not self._is_accepting:
            self._is_accepting = True
            self._socket.setblocking(False)
            self._socket.listen(200)
            self._loop.add_reader(self._socket, self._accept_those_there)

    def _accept_those_there(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:  # nobody more, or one that is gone again
                return
            client.setblocking(False)
            self._serving.add(self._loop.create_task(self._serve(client)))

    def _stop_accepting(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            self._loop.remove_reader(self._socket)
        self._socket.close()

    async def _refuse(self) -> None:
        if self._is_accepting:
            self._stop_accepting()
            # Taken again at once, so that nobody else gets the port, but nobody listens on it.
            self._socket = self._bind(self._host, self.port)

    async def _heal(self) -> None:
        for link in [link for link in self._links if link.abandoned]:
            _reset(link.server)
            link.released.set()
        await self._set_flowing(flowing=True)
        await self._accept()

    async def _set_flowing(self, *, flowing: bool) -> None:
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _cut(self) -> None:
        for link in list(self._links):
            _reset(link.client)
            _reset(link.server)
            for pump in link.pumps:
                pump.cancel()

    async def _abandon(self) -> None:
        for link in self._links:
            link.abandoned = True
            _reset(link.client)

    async def _half_close(self, towards: Literal["client", "server"]) -> None:
        for link in self._links:
            (link.client if towards == "client" else link.server).write_eof()

    async def _close(self) -> None:
        self._stop_accepting()
        await asyncio.sleep(0)  # so that each task has begun, and ends its connection
        await self._cut()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, client: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            reader, writer = await asyncio.open_connection(sock=client)
            try:
                await self._forward(reader, writer)
            finally:
                _reset(writer)
        finally:
            client.close()
            self._serving.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # So that the end of a machine behind a dropped network is noticed some time, as a server would.
        client_socket = writer.get_extra_info("socket")
        client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self._flowing.wait()
        try:
            server_reader, server = await self._connect()
        except OSError:
            return  # the server is down: the client's connection is reset
        link = _Link(writer, server)
        self._links.add(link)
        try:
            link.pumps = [
                asyncio.ensure_future(self._pump(link, reader, server)),
                asyncio.ensure_future(self._pump(link, server_reader, writer)),
            ]
            await asyncio.wait(link.pumps)
        finally:
            for pump in link.pumps:
                pump.cancel()
            self._links.discard(link)
            _reset(server)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = str(self._given.get("host", "localhost")), str(self._given.get("port", 5432))
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, int(port))

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward in one direction until its end, and then the end."""
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._pass(link)
                writer.write(data)
                await writer.drain()
        await self._pass(link)
        with suppress(OSError):
            if reader.exception() is None:
                writer.write_eof()
                return
        _reset(writer)

    async def _pass(self, link: _Link) -> None:
        await self._flowing.wait()
        if self._delay:
            await asyncio.sleep(self._delay)
        if link.abandoned:
            await link.released.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection rudely: what is under way is gone, and the other end is told that it is."""
    if not writer.is_closing():
        raw = writer.get_extra_info("socket")
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
