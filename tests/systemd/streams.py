"""Streams through a core, held for as long as this runs, and new connections all the while.

Usage: streams.py PORT ECHO_PORT COUNT FILE. PORT leads to 127.0.0.1:ECHO_PORT, where this listens and sends
back what comes. Each stream says eight bytes five times a second and wants them back within ten seconds; a
new connection does so once, fifty times a second. FILE is kept current: "streams ended connections failed".
"""

import asyncio
import os
import sys

PORT, ECHO_PORT, COUNT = (int(argument) for argument in sys.argv[1:4])
FILE = sys.argv[4]
WORDS = b"echo me\n"
PATIENCE = 10

streams = ended = connections = failed = 0


async def echo(reader, writer):
    try:
        while words := await reader.read(4096):
            writer.write(words)
            await writer.drain()
    except OSError:
        pass
    writer.close()


async def say(reader, writer):
    writer.write(WORDS)
    heard = await asyncio.wait_for(reader.readexactly(len(WORDS)), PATIENCE)
    if heard != WORDS:
        raise OSError(f"{heard!r} came back")


async def stream():
    global streams, ended
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        await say(reader, writer)
        streams += 1
        while True:
            await asyncio.sleep(0.2)
            await say(reader, writer)
    except (OSError, EOFError, asyncio.TimeoutError) as error:
        print("a stream ended:", repr(error), flush=True)
        ended += 1


async def connection():
    global connections, failed
    connections += 1
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection("127.0.0.1", PORT), PATIENCE
        )
        await say(reader, writer)
        writer.close()
    except (OSError, EOFError, asyncio.TimeoutError) as error:
        print("a new connection failed:", repr(error), flush=True)
        failed += 1


async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", ECHO_PORT)
    tasks = {asyncio.create_task(stream()) for _ in range(COUNT)}
    async with server:
        while True:
            await asyncio.sleep(0.02)
            task = asyncio.create_task(connection())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            with open(FILE + ".new", "w") as file:
                print(streams, ended, connections, failed, file=file)
            os.rename(FILE + ".new", FILE)


asyncio.run(main())
