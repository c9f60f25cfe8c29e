"""Who is at the other end of a connection: the server itself or something in between, and whether it is down.

Knows nothing of workers and recalls.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from contextlib import closing
from dataclasses import dataclass

from pgrecall.database import AsyncConnection

#: Seconds that an attempt to find out may take. It says "not down" after that: whoever asks must assume the worst.
_PATIENCE = 0.5

_BODY = b"\0\3\0\0user\0pgrecall\0database\0postgres\0\0"

#: The beginning of a conversation (protocol 3.0). A server that starts or stops refuses it before it asks who we are.
#: Not libpq's own ping: that keeps the whole interpreter waiting, and the runs could not be stopped in time.
_HELLO = (len(_BODY) + 4).to_bytes(4, "big") + _BODY

#: The refusal's field C, its SQLSTATE, in any language.
_CANNOT_CONNECT_NOW = b"C57P03\0"


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection.

    Attributes:
        address: The socket address connected to: a path, or host and port.
        is_server: The address is the server's own, so nobody listening there means that the server is down.
    """

    address: str | tuple[str, int]
    is_server: bool

    async def is_down(self) -> bool:
        """Whether the server is certainly down, starting or stopping; false if that cannot be known."""
        if not self.is_server:
            return False
        try:
            async with asyncio.timeout(_PATIENCE):
                if isinstance(self.address, str):
                    reader, writer = await asyncio.open_unix_connection(self.address)
                else:
                    reader, writer = await asyncio.open_connection(*self.address)
                try:
                    writer.write(_HELLO)
                    return _CANNOT_CONNECT_NOW in await reader.read(2000)
                finally:
                    writer.close()
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:  # unreachable, or no answer in time
            return False


async def peer_of(connection: AsyncConnection) -> Peer:
    """Finds out who is at the other end: one statement.

    Raises:
        psycopg.Error: The connection is gone.
    """
    cursor = await connection.execute("select host(inet_server_addr()), inet_server_port()")
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 (a select without from has one row)
    host, port = row
    # A copy of the descriptor, so that closing it here leaves the connection alone.
    with closing(socket.socket(fileno=os.dup(connection.fileno()))) as ours:
        name = ours.getpeername()
    if isinstance(name, str):
        return Peer(name, is_server=host is None and not connection.is_pooled)
    address = (str(name[0]).partition("%")[0], int(name[1]))
    is_server = (
        not connection.is_pooled
        and host is not None
        and port == address[1]
        and ipaddress.ip_address(host) == ipaddress.ip_address(address[0])
    )
    return Peer(address, is_server)
