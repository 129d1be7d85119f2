"""The panel's own client reads usage as the panel does, in its rhythm but faster, until it is told to end; then it
says what it has in all, and how many of its calls had no answer. See tests/it/counted.rs."""

import asyncio
import json
import logging
import sys

from PasarGuardNodeBridge import NodeAPIError, NodeType, create_node
from PasarGuardNodeBridge.common import service_pb2 as service

SETUP = json.loads(sys.stdin.readline())
# The panel reads users every 10 s and outbounds every 30.
USERS, OUTBOUNDS = 0.25, 0.75

logging.basicConfig(level=logging.CRITICAL)


class Job:
    def __init__(self, node, kind, interval):
        self.node, self.kind, self.interval = node, kind, interval
        self.sum, self.answers, self.failures = 0, 0, 0

    async def once(self):
        try:
            reply = await self.node.get_stats(self.kind, reset=True)
        except (NodeAPIError, OSError):
            self.failures += 1
        else:
            self.answers += 1
            self.sum += sum(stat.value for stat in reply.stats)

    async def run(self, end):
        while not end.is_set():
            await self.once()
            try:
                await asyncio.wait_for(end.wait(), self.interval)
            except TimeoutError:
                pass


async def main():
    node = create_node(
        NodeType.grpc,
        address="127.0.0.1",
        port=SETUP["port"],
        api_port=1,
        server_ca=SETUP["certificate"],
        api_key=SETUP["api_key"],
        logger=logging.getLogger("panel"),
    )
    await node.start(config=json.dumps(SETUP["config"]), backend_type=service.XRAY, users=[], exclude_inbounds=["vless"])
    end = asyncio.Event()
    jobs = [Job(node, service.UsersStat, USERS), Job(node, service.Outbounds, OUTBOUNDS)]
    running = [asyncio.create_task(job.run(end)) for job in jobs]
    print(json.dumps("polling"), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    end.set()
    await asyncio.gather(*running)
    # What was on its way when something happened comes again a moment later.
    for _ in range(4):
        await asyncio.sleep(0.7)
        for job in jobs:
            await job.once()
    said = {name: {"sum": job.sum, "answers": job.answers, "failures": job.failures} for name, job in zip(("users", "outbounds"), jobs)}
    print(json.dumps(said), flush=True)
    await asyncio.wait_for(asyncio.shield(asyncio.sleep(0)), 1)


asyncio.run(main())
