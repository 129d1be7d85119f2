"""Connections of users to the origin of the tests: SOCKS 5 through a user's own Xray. See tests/support/origin.rs."""

import asyncio
import socket
import struct


class Connection:
    @classmethod
    async def open(cls, socks_port, origin_port):
        self = cls()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", socks_port)
        try:
            # No authentication, then CONNECT to an IPv4 address.
            self.writer.write(b"\x05\x01\x00")
            greeting = await self.reader.readexactly(2)
            assert greeting == b"\x05\x00", greeting
            self.writer.write(b"\x05\x01\x00\x01" + socket.inet_aton("127.0.0.1") + struct.pack(">H", origin_port))
            answer = await self.reader.readexactly(10)
            assert answer[1] == 0, answer
        except BaseException:
            self.close()
            raise
        return self

    async def begin(self, up, down):
        """Says how much will be moved; the first bytes of it go both ways."""
        header = struct.pack("<QQ", up - 16, down)
        self.left = up - len(header), down - 1
        self.writer.write(header)
        await self.reader.readexactly(1)

    async def finish(self):
        up, down = self.left
        self.writer.write(bytes(up))
        await self.writer.drain()
        await self.reader.readexactly(down)
        self.close()

    def close(self):
        self.writer.close()


class Users:
    """The users' clients, as the test that started them describes them."""

    def __init__(self, clients, origin):
        self.clients, self.origin = clients, origin

    async def connect(self, email):
        return await Connection.open(self.clients[email]["port"], self.origin)

    async def exchange(self, email, up, down):
        connection = await self.connect(email)
        try:
            await connection.begin(up, down)
            await connection.finish()
        finally:
            connection.close()

    async def served(self, *emails):
        """Whether all of them are."""

        async def one(email):
            try:
                async with asyncio.timeout(5):
                    await self.exchange(email, 100, 100)
            except (OSError, EOFError, TimeoutError):
                return False
            return True

        return all([await one(email) for email in emails])

    async def shut_out(self, *emails):
        """Whether none of them is served."""
        return not any([await self.served(email) for email in emails])
