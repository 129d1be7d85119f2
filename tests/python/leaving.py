"""Asks a node for its counters while it is told to end, as tests/it/python_client.rs describes on stdin.

grpclib drops its connection at once when a server says goodbye, so the reply has to come before.
"""

import asyncio
import json
import os
import signal
import ssl
import sys

from grpclib.client import Channel
from PasarGuardNodeBridge.common import service_pb2 as service
from PasarGuardNodeBridge.common.service_grpc import NodeServiceStub

SETUP = json.load(sys.stdin)
# Longer than a call needs, shorter than the core may be silent.
PAUSE = 0.4


async def main():
    context = ssl.create_default_context(cadata=SETUP["certificate"])
    context.set_alpn_protocols(["h2"])
    channel = Channel("127.0.0.1", SETUP["port"], ssl=context)
    node, metadata = NodeServiceStub(channel), {"x-api-key": SETUP["api_key"]}
    await node.GetBaseInfo(service.Empty(), metadata=metadata)
    # The core answers only when the node is on its way out.
    os.kill(SETUP["core"], signal.SIGSTOP)
    try:
        request = service.StatRequest(type=service.Outbounds, reset=True)
        reply = asyncio.create_task(node.GetStats(request, metadata=metadata))
        await asyncio.sleep(PAUSE)
        os.kill(SETUP["node"], signal.SIGTERM)
        await asyncio.sleep(PAUSE)
        assert not reply.done(), reply
    finally:
        os.kill(SETUP["core"], signal.SIGCONT)
    print(await asyncio.wait_for(reply, 10))
    channel.close()


asyncio.run(main())
