"""Drives a node with one published version of the panels' client library, over gRPC or REST.

The versions differ in what they can do and in how it is called. `Panel` evens that out; what is asked
of the node is the same for all of them, and so is what it has to answer.

tests/it/every_client.rs starts the node, an origin server and the users' clients, and describes them
as JSON on stdin. The first thing that is not as it should be ends the script with a traceback and a
non-zero exit code.
"""

import asyncio
import contextlib
import functools
import importlib
import importlib.metadata
import json
import logging
import sys
import time
import uuid

from asking import equal, eventually, refusal
from connection import Users

SETUP = json.load(sys.stdin)
CLIENTS = SETUP["clients"]
VLESS, OUTBOUND = SETUP["inbound"], SETUP["outbound"]
REST = SETUP["transport"] == "rest"

PACKAGE = SETUP["package"]
MODULE = {"gozargah-node-bridge": "GozargahNodeBridge", "pasarguard-node-bridge": "PasarGuardNodeBridge"}[PACKAGE]
bridge = importlib.import_module(MODULE)
service = importlib.import_module(f"{MODULE}.common.service_pb2")
VERSION = tuple(int(part) for part in importlib.metadata.version(PACKAGE).split("."))

# Shows a client certificate and gets a session; the others show a key.
SESSIONS = VERSION <= (0, 0, 30)
# Sends a Stop before its Start when it takes the node for started.
STOPS_FIRST = VERSION < (0, 4)

# These close a stream of logs as soon as it is open, whoever serves it.
LOSES_LOGS = REST and (0, 1) <= VERSION < (0, 8)

# The whole script; the test that runs it allows a little more.
PATIENCE = 28
UP, DOWN = 1_500_007, 3_000_011
SIZES = (1, 100, 101, 5000)

# The client tells of everything that is refused, so also of what has to be.
logging.basicConfig(level=logging.WARNING)


def code(grpc, rest=None):
    """What the client makes of a gRPC status, given as in HTTP, or of an HTTP status."""
    if REST:
        return rest or grpc
    # These look the status up among those of another library, so they know none of them.
    return 500 if VERSION <= (0, 0, 35) else grpc


NOT_INITIALIZED = code(503, rest=500), "backend not initialized"


class Panel:
    """The client of one node, under the same names for every version."""

    def __init__(self, stranger=False):
        if SESSIONS:
            certificate, key = SETUP["shown"]["stranger" if stranger else "panel"]
            options = {"client_cert": certificate, "client_key": key}
        else:
            options = {"api_key": str(uuid.uuid4()) if stranger else SETUP["shown"]["key"]}
        if VERSION >= (0, 1):
            options["logger"] = logging.getLogger("panel")
        if VERSION >= (0, 4):
            # The service beside the node, which is not tested here.
            options["api_port"] = 1
        if VERSION >= (0, 9):
            options["sync_poll_interval"] = 0.05
        self.node = bridge.create_node(
            bridge.NodeType(SETUP["transport"]),
            address="127.0.0.1",
            port=SETUP["port"],
            server_ca=SETUP["certificate"],
            **options,
        )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        # Without this the client would send a Stop when it goes.
        await self.node.disconnect()
        await self.node.__aexit__(None, None, None)

    def start(self, users, keep_alive=60):
        config = json.dumps(SETUP["config"])
        return self.node.start(config=config, backend_type=service.XRAY, users=users, keep_alive=keep_alive)

    def stop(self):
        return self.node.stop()

    async def info(self):
        return decoded(service.BaseInfoResponse, await self.node.info())

    async def backend_stats(self):
        return decoded(service.BackendStatsResponse, await self.node.get_backend_stats())

    async def system_stats(self):
        return decoded(service.SystemStatsResponse, await self.node.get_system_stats())

    def stats(self, kind, name=None, reset=False):
        """Of one user, inbound or outbound, or of every one."""
        if hasattr(self.node, "get_stats"):
            one, every = {
                "user": (service.UserStat, service.UsersStat),
                "inbound": (service.Inbound, service.Inbounds),
                "outbound": (service.Outbound, service.Outbounds),
            }[kind]
            if name is None:
                return self.node.get_stats(every, reset=reset)
            return self.node.get_stats(one, reset=reset, name=name)
        if name is None:
            return getattr(self.node, f"get_{kind}s_stats")(reset=reset)
        return getattr(self.node, f"get_{kind}_stats")(name, reset=reset)

    def online(self, email):
        return self.node.get_user_online_stats(email)

    def online_addresses(self, email):
        return self.node.get_user_online_ip_list(email)

    def sync_users(self, users):
        """The full list."""
        return self.node.sync_users(users)

    async def queue_users(self, users):
        """For the client's worker to send."""
        if hasattr(self.node, "update_users"):
            await self.node.update_users(users)
        else:
            for one in users:
                await self.node.update_user(one)

    @contextlib.asynccontextmanager
    async def logs(self):
        if hasattr(self.node, "stream_logs"):
            async with self.node.stream_logs() as lines:
                yield lines
        else:
            # Fetched since the start.
            yield await self.node.get_logs()


def decoded(kind, reply):
    """The oldest clients hand some REST replies on as they are."""
    return kind.FromString(reply) if isinstance(reply, bytes) else reply


def user(email, inbounds=(VLESS,), vless_id=None):
    if vless_id is None:
        known = CLIENTS.get(email)
        vless_id = known["id"] if known else str(uuid.uuid5(uuid.NAMESPACE_OID, email))
    return bridge.create_user(email, bridge.create_proxy(vless_id=vless_id), list(inbounds))


def crowd(count, inbounds=(VLESS,)):
    """So many users. The last one has a client, and so has the first one of more than two."""
    emails = ["2"] if count == 1 else ["3", *map(str, range(10_000, 9_998 + count)), "2"]
    equal(len(emails), count)
    return [user(email, inbounds) for email in emails]


# What is asked of it, and what a user has.

refused = refusal(bridge.NodeAPIError)
USERS = Users(CLIENTS, SETUP["origin"])
connect, exchange, served, shut_out = USERS.connect, USERS.exchange, USERS.served, USERS.shut_out


# The subjects, in the order in which they are run.


async def a_stranger_gets_nowhere():
    mismatch = code(403), "api key mismatch"
    async with Panel(stranger=True) as stranger:
        if SESSIONS:
            # The handshake fails, and when the client notices decides what it calls that.
            try:
                reply = await stranger.start([])
            except bridge.NodeAPIError as error:
                assert error.code in (0, -1), error
            else:
                raise AssertionError(f"not refused but answered: {reply!r}")
            return
        await refused(stranger.info(), *mismatch)
        await refused(stranger.start([]), *mismatch)
        await refused(stranger.sync_users([user("1")]), *mismatch)


def described(info):
    return info.started, info.core_version, info.node_version


async def nothing_is_there_without_a_start(panel):
    refusal = NOT_INITIALIZED
    if SESSIONS:
        # The client doesn't ask the node.
        refusal = -3, "Node is not connected"
        await refused(panel.info(), *refusal)
    else:
        info = await panel.info()
        equal(described(info), (False, SETUP["core_version"], SETUP["node_version"]))
    for call in (
        panel.backend_stats(),
        panel.system_stats(),
        panel.stats("user"),
        panel.stats("outbound", OUTBOUND),
        panel.online("1"),
        panel.online_addresses("1"),
        panel.sync_users([user("1")]),
    ):
        await refused(call, *refusal)
    if hasattr(panel.node, "get_outbounds_latency"):
        latency = panel.node.get_outbounds_latency()
        if REST:
            await refused(latency, *refusal)
        else:
            equal(list((await latency).latencies), [])
    if hasattr(panel.node, "sync_users_chunked"):
        # Nothing is raised here: the answer is who failed.
        equal([one.email for one in await panel.node.sync_users_chunked([user("1")])], ["1"])


async def a_start_starts(panel):
    info = await panel.start([user("1")])
    equal(described(info), (True, SETUP["core_version"], SETUP["node_version"]))
    if SESSIONS:
        uuid.UUID(info.session_id)
    assert (await panel.info()).started
    assert await served("1")
    assert await shut_out("2")


async def machine_and_core_are_described(panel):
    async def sample():
        stats = await panel.system_stats()
        return stats if stats.mem_total > 0 and stats.cpu_cores > 0 else None

    system = await eventually("the machine was looked at", sample)
    assert 0 < system.mem_used < system.mem_total and 0 <= system.cpu_usage <= 100, system
    core = await panel.backend_stats()
    assert core.num_goroutine > 0 and core.sys > 1 << 20, core


def near(got, expected):
    """An inbound counts what is on the wire: the same bytes and the protocol around them."""
    return all(abs(a - b) <= b / 10 for a, b in zip(got, expected))


def exactly(got, expected):
    return got == expected


KINDS = (("user", "1", exactly), ("outbound", OUTBOUND, exactly), ("inbound", VLESS, near))


async def traffic(panel, kind, name, alone, reset=False):
    """Bytes up and down, asked for one or picked from the answer for all."""
    stats = (await panel.stats(kind, name if alone else None, reset=reset)).stats
    assert all(stat.link == "traffic" for stat in stats), stats
    assert not alone or {stat.name for stat in stats} == {name}, stats
    values = {(stat.name, stat.type): stat.value for stat in stats}
    equal(len(values), len(stats))
    return values.get((name, "uplink"), 0), values.get((name, "downlink"), 0)


async def every_byte_is_counted(panel):
    """A read that resets has what was used since the last one that did, any other has all of it."""
    for kind, _, _ in KINDS:
        await panel.stats(kind, reset=True)
    before = {name: await traffic(panel, kind, name, alone=True) for kind, name, _ in KINDS}

    async def since(kind, name, alone):
        got = await traffic(panel, kind, name, alone)
        return tuple(now - then for now, then in zip(got, before[name]))

    for times, alone in ((1, True), (2, False)):
        expected = (times * UP, times * DOWN)

        async def counted():
            return await since("user", "1", alone=True) == expected

        await exchange("1", UP, DOWN)
        await eventually("the user's counters hold every byte", counted)
        for kind, name, like in KINDS:
            got = await since(kind, name, alone)
            assert like(got, expected), (name, got)
            got = await traffic(panel, kind, name, alone, reset=True)
            assert like(got, (UP, DOWN)), (name, got)
            equal(await traffic(panel, kind, name, alone, reset=True), (0, 0))
    equal(list((await panel.stats("user", "nobody")).stats), [])


async def who_is_online_is_told(panel):
    """While a connection of user 1 is open."""

    async def online():
        reply = await panel.online("1")
        equal(reply.name, "1")
        return reply.value == 1

    await eventually("he is online", online)
    reply = await panel.online_addresses("1")
    equal((reply.name, list(reply.ips)), ("1", ["127.0.0.2"]))
    assert abs(reply.ips["127.0.0.2"] - time.time()) < 60, reply
    await refused(panel.online("nobody"), code(404), "not found")
    await refused(panel.online_addresses("nobody"), code(404), "not found")


async def latencies_need_an_observatory(panel):
    if hasattr(panel.node, "get_outbounds_latency"):
        await refused(panel.node.get_outbounds_latency(), code(500, rest=502), "xray outbound latency is not available")


async def one_user_comes_and_goes(panel):
    await panel.node.update_user(user("2"))
    await eventually("he is served", lambda: served("2"))
    assert await served("1")
    await panel.node.update_user(user("2", inbounds=[]))
    await eventually("he is shut out", lambda: shut_out("2"))
    assert await served("1")


async def a_full_list_replaces_everybody(panel):
    for count in SIZES:
        await panel.sync_users([user("1"), *crowd(count)])
        assert await served("1", "2"), count
        equal(await served("3"), count > 1)
        await panel.sync_users([user("1")])
        assert await served("1") and await shut_out("2", "3"), count
    # A list that can't be served as a whole changes nobody.
    await refused(panel.sync_users([user("2"), user("bad", vless_id="not-a-uuid")]), 500, "user bad: ")
    assert await served("1") and await shut_out("2")


async def a_queue_gets_through(panel):
    # A client that makes a call of each user takes its time for thousands.
    slow = REST and VERSION < (0, 4)
    for count in SIZES[:3] if slow else SIZES:
        first_and_last = ["2"] if count == 1 else ["2", "3"]
        await panel.queue_users(crowd(count))
        await eventually(f"{count} users are served", lambda: served(*first_and_last))
        await panel.queue_users(crowd(count, inbounds=[]))
        await eventually(f"{count} users are shut out", lambda: shut_out(*first_and_last))
        assert await served("1")
    if hasattr(panel.node, "requires_hard_reset"):
        assert not panel.node.requires_hard_reset()


async def a_chunked_list_changes_those_it_names(panel):
    if not hasattr(panel.node, "sync_users_chunked"):
        return
    for count in SIZES:
        # More than one chunk from 101 users on.
        sync = functools.partial(panel.node.sync_users_chunked, chunk_size=100 if count < 5000 else 2000)
        equal(list(await sync(crowd(count))), [])
        assert await served("1", "2"), "who is not named stays"
        equal(await served("3"), count > 1)
        equal(list(await sync(crowd(count, inbounds=[]))), [])
        assert await served("1") and await shut_out("2", "3")


async def every_viewer_sees_every_line(panel):
    if LOSES_LOGS:
        async with panel.logs():
            await panel.info()
        return
    async with contextlib.AsyncExitStack() as stack:
        panels = [panel, panel]
        if not hasattr(panel.node, "stream_logs"):
            # Has one viewer, and a second start would end a session.
            panels = [panel] if SESSIONS else [panel, await stack.enter_async_context(Panel())]
        for other in panels[1:]:
            if other is not panel:
                await other.start([user("1")])
        viewers = [await stack.enter_async_context(one.logs()) for one in panels]

        # Nobody had these names before, so no older line has them.
        names = {"first-line": CLIENTS["2"]["id"], "last-line": CLIENTS["3"]["id"]}
        await panel.sync_users([user("1"), *(user(name, vless_id=own) for name, own in names.items())])
        assert await served("2", "3")
        seen = []
        for lines in viewers:
            got = []
            async with asyncio.timeout(10):
                while not got or "email: last-line" not in got[-1]:
                    line = await lines.get()
                    assert isinstance(line, str), line
                    if got or "email: first-line" in line:
                        got.append(line)
            seen.append(got)
        assert all(got == seen[0] for got in seen), seen
    # The viewers have gone alone.
    await panel.sync_users([user("1")])
    assert await served("1") and await shut_out("2", "3")


async def a_start_by_another_panel_leaves_the_core_alone(panel):
    before = (await panel.backend_stats()).uptime
    async with Panel() as another:
        assert (await another.start([user("1")])).started
        assert (await another.backend_stats()).uptime >= before
        if SESSIONS:
            await refused(panel.backend_stats(), code(403), "session id mismatch")
            # Its session is over, so it has to begin anew.
            await panel.node.disconnect()
            await panel.start([user("1")])
    if not STOPS_FIRST:
        assert (await panel.start([user("1")])).started
    assert (await panel.backend_stats()).uptime >= before


async def a_silent_panel_loses_control():
    async with Panel() as panel:
        await panel.start([user("1")], keep_alive=2)
        assert await served("1")
    await eventually("the keep-alive is over", lambda: shut_out("1"))
    async with Panel() as panel:
        await nothing_is_there_without_a_start(panel)


async def main():
    def step(title):
        print(f"{time.monotonic() - began:5.1f} s  {title}", flush=True)

    began = time.monotonic()
    print(PACKAGE, VERSION, SETUP["transport"], "Python", sys.version)
    step("stranger")
    await a_stranger_gets_nowhere()
    async with Panel() as panel:
        step("before a start")
        await nothing_is_there_without_a_start(panel)
        step("start")
        await a_start_starts(panel)
        await machine_and_core_are_described(panel)
        step("traffic")
        await every_byte_is_counted(panel)

        # It stays open while all that follows is done, so none of it starts the core anew.
        held = await connect("1")
        await held.begin(UP, DOWN)
        step("what can be watched")
        await who_is_online_is_told(panel)
        await latencies_need_an_observatory(panel)
        before = (await panel.backend_stats()).uptime
        step("one user")
        await one_user_comes_and_goes(panel)
        step("full lists")
        await a_full_list_replaces_everybody(panel)
        step("queue")
        await a_queue_gets_through(panel)
        step("chunked lists")
        await a_chunked_list_changes_those_it_names(panel)
        step("logs")
        await every_viewer_sees_every_line(panel)
        step("another panel")
        await a_start_by_another_panel_leaves_the_core_alone(panel)
        assert (await panel.backend_stats()).uptime >= before
        await held.finish()

        step("stop")
        await panel.stop()
        assert await shut_out("1")
        await nothing_is_there_without_a_start(panel)
    async with Panel() as panel:
        step("start and stop again")
        await a_start_starts(panel)
        await panel.stop()
        assert await shut_out("1")
    step("silence")
    await a_silent_panel_loses_control()
    step("passed")


asyncio.run(asyncio.wait_for(main(), PATIENCE))
