"""Drives a node with the panel's own client library, through every call it has over gRPC.

tests/it/python_client.rs starts the node, an origin server and the users' clients, and describes
them as JSON on stdin. The first thing that is not as it should be ends the script with a traceback
and a non-zero exit code.
"""

import asyncio
import json
import logging
import socket
import ssl
import sys
import time
import uuid

from PasarGuardNodeBridge import InMemoryUserSyncStore, NodeAPIError, NodeType, create_node, create_proxy, create_user
from PasarGuardNodeBridge.common import service_pb2 as service

from asking import equal, eventually, refusal
from connection import Users

SETUP = json.load(sys.stdin)
CLIENTS = SETUP["clients"]
VLESS, OUTBOUND = SETUP["inbound"], SETUP["outbound"]

# The whole script; the test that runs it allows a little more.
PATIENCE = 50
UP, DOWN = 1_500_007, 3_000_011
NOT_INITIALIZED = "backend not initialized"

# The client tells of everything that is refused, so also of what has to be.
logging.basicConfig(level=logging.WARNING)


# What a panel has.


def panel(api_key=SETUP["api_key"], **options):
    return create_node(
        NodeType.grpc,
        address="127.0.0.1",
        port=SETUP["port"],
        # The service beside the node, which is not tested here.
        api_port=1,
        server_ca=SETUP["certificate"],
        api_key=api_key,
        logger=logging.getLogger("panel"),
        **options,
    )


def user(email, inbounds=(VLESS,), vless_id=None):
    if vless_id is None:
        known = CLIENTS.get(email)
        vless_id = known["id"] if known else str(uuid.uuid5(uuid.NAMESPACE_OID, email))
    return create_user(email, create_proxy(vless_id=vless_id), list(inbounds))


def bad_user(email):
    return user(email, vless_id="not-a-uuid")


def start(node, users, config=SETUP["config"], backend_type=service.XRAY):
    return node.start(
        config=config if isinstance(config, str) else json.dumps(config),
        backend_type=backend_type,
        users=users,
        keep_alive=60,
        exclude_inbounds=[SETUP["excluded"]],
    )


# What is asked of it, and what a user has.

refused = refusal(NodeAPIError)
USERS = Users(CLIENTS, SETUP["origin"])
connect, exchange, served = USERS.connect, USERS.exchange, USERS.served


# The subjects, in the order in which they are run.


def the_certificate_is_accepted():
    strict = ssl.create_default_context()
    # The default of Python 3.13 and later.
    strict.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    for context in (ssl.create_default_context(), strict):
        context.load_verify_locations(cadata=SETUP["certificate"])
        context.set_alpn_protocols(["h2"])
        for name in ("127.0.0.1", "localhost"):
            with socket.create_connection(("127.0.0.1", SETUP["port"]), timeout=10) as plain:
                with context.wrap_socket(plain, server_hostname=name) as tls:
                    equal(tls.selected_alpn_protocol(), "h2")


async def a_wrong_key_opens_nothing():
    async with panel(api_key=str(uuid.uuid4())) as stranger:
        await refused(stranger.info(), 403, "api key mismatch")
        await refused(start(stranger, []), 403, "api key mismatch")


async def nothing_is_there_without_a_start(node):
    info = await node.info()
    equal((info.started, info.core_version, info.node_version), (False, SETUP["core_version"], SETUP["node_version"]))
    for call in (
        node.get_backend_stats(),
        node.get_system_stats(),
        node.get_stats(service.UsersStat),
        node.get_user_online_stats("1"),
        node.get_user_online_ip_list("1"),
        node.sync_users([user("1")]),
    ):
        await refused(call, 503, NOT_INITIALIZED)
    equal(list((await node.get_outbounds_latency()).latencies), [])

    failed = await node.sync_users_chunked([user("1")])
    equal(([one.email for one in failed], failed.rejected), (["1"], False))
    assert NOT_INITIALIZED in failed.detail, failed.detail

    async with node.stream_logs() as lines:
        error = await asyncio.wait_for(lines.get(), 10)
    assert isinstance(error, NodeAPIError), error
    equal((error.code, error.detail), (503, NOT_INITIALIZED))


async def a_start_starts(node):
    info = await start(node, [user("1")])
    equal((info.started, info.core_version, info.node_version), (True, SETUP["core_version"], SETUP["node_version"]))
    equal(await node.get_versions(), (SETUP["node_version"], SETUP["core_version"]))
    assert (await node.info()).started
    assert await served("1")
    assert not await served("2")
    assert await served("own"), "an excluded inbound keeps the users of its config"


async def machine_and_core_are_described(node):
    async def sample():
        stats = await node.get_system_stats()
        return stats if stats.mem_total > 0 and stats.cpu_cores > 0 else None

    system = await eventually("the machine was looked at", sample)
    assert 0 < system.mem_used < system.mem_total and 0 <= system.cpu_usage <= 100, system
    core = await node.get_backend_stats()
    assert core.num_goroutine > 0 and core.sys > 1 << 20, core


def near(got, expected):
    """An inbound counts what is on the wire: the same bytes and the protocol around them."""
    return all(abs(a - b) <= b / 10 for a, b in zip(got, expected))


def exactly(got, expected):
    return got == expected


KINDS = (
    (service.UserStat, service.UsersStat, "1", exactly),
    (service.Outbound, service.Outbounds, OUTBOUND, exactly),
    (service.Inbound, service.Inbounds, VLESS, near),
)


async def traffic(node, kind, name, reset):
    """Bytes up and down; what is nothing is left out where all are asked for."""
    named = name if kind in (service.UserStat, service.Outbound, service.Inbound) else ""
    stats = (await node.get_stats(kind, reset=reset, name=named)).stats
    assert all(stat.link == "traffic" for stat in stats), stats
    assert not named or {stat.name for stat in stats} == {name}, stats
    values = {(stat.name, stat.type): stat.value for stat in stats}
    equal(len(values), len(stats))
    assert named or not reset or all(values.values()), values
    return values.get((name, "uplink"), 0), values.get((name, "downlink"), 0)


async def every_byte_is_counted(node):
    """A read that resets has what was used since the last one that did, any other has all of it."""
    for _, every, _, _ in KINDS:
        await node.get_stats(every, reset=True)
    before = {name: await traffic(node, one, name, reset=False) for one, _, name, _ in KINDS}

    async def since(kind, name):
        got = await traffic(node, kind, name, reset=False)
        return tuple(now - then for now, then in zip(got, before[name]))

    for times, place in ((1, 0), (2, 1)):
        expected = (times * UP, times * DOWN)

        async def counted():
            return await since(service.UserStat, "1") == expected

        await exchange("1", UP, DOWN)
        await eventually("the user's counters hold every byte", counted)
        for *kinds, name, like in KINDS:
            for kind in kinds:
                got = await since(kind, name)
                assert like(got, expected), (name, got)
            got = await traffic(node, kinds[place], name, reset=True)
            assert like(got, (UP, DOWN)), (name, got)
            for kind in kinds:
                equal(await traffic(node, kind, name, reset=True), (0, 0))

    # Nothing that the node adds to the core shows.
    known = {"1", "own", VLESS, SETUP["excluded"], OUTBOUND, "block"}
    for _, every, _, _ in KINDS:
        names = {stat.name for stat in (await node.get_stats(every, reset=False)).stats}
        assert names <= known, names
    equal(list((await node.get_stats(service.UserStat, name="nobody")).stats), [])
    await refused(node.get_stats(service.UserStat, name=""), 500, "email required")


async def who_is_online_is_told(node):
    """While a connection of user 1 is open."""

    async def online():
        reply = await node.get_user_online_stats("1")
        equal(reply.name, "1")
        return reply.value == 1

    await eventually("he is online", online)
    reply = await node.get_user_online_ip_list("1")
    equal((reply.name, list(reply.ips)), ("1", ["127.0.0.2"]))
    assert abs(reply.ips["127.0.0.2"] - time.time()) < 60, reply
    await refused(node.get_user_online_stats("nobody"), 404, "not found")
    await refused(node.get_user_online_ip_list("nobody"), 404, "not found")


async def latencies_need_an_observatory(node):
    await refused(node.get_outbounds_latency(), 500, "xray outbound latency is not available")


async def logs_are_streamed(node):
    async with node.stream_logs() as lines:
        # Other calls go on beside it. User 2 was not there before, so his line is a new one.
        equal(await node.sync_users_chunked([user("2")]), [])
        assert await served("2")
        line = ""
        async with asyncio.timeout(10):
            while "email: 2" not in line:
                line = await lines.get()
                assert isinstance(line, str), line
    # It was ended without an error, and alone: the connection serves on.
    while not lines.empty():
        line = lines.get_nowait()
        assert isinstance(line, str), line
    equal(await node.sync_users_chunked([user("2", inbounds=[])]), [])


async def the_same_start_again_changes_nothing(node):
    async def uptime(at_least):
        stats = await node.get_backend_stats()
        return stats.uptime if stats.uptime >= at_least else None

    # Old enough that a new core would be seen by its uptime.
    before = await eventually("the core is 2 s old", lambda: uptime(2))
    times = []
    for _ in range(3):
        began = time.monotonic()
        assert (await start(node, [user("1")])).started
        times.append(time.monotonic() - began)
    assert (await node.get_backend_stats()).uptime >= before
    # At least one of them was not held up by a busy machine.
    assert min(times) < 1, times


async def a_full_list_replaces_everybody(node):
    await node.sync_users([user("1"), user("2")], flush_pending=True)
    assert await served("1") and await served("2")
    await node.sync_users([user("1")])
    assert not await served("2")
    assert await served("own"), "an excluded inbound keeps the users of its config"


async def a_chunked_list_changes_those_it_names(node):
    many = [str(number) for number in range(1000, 1250)] + ["2"]
    equal(await node.sync_users_chunked([user(email) for email in many]), [])
    assert await served("2"), "who is in the last chunk is served"
    assert await served("1"), "who is not named stays"
    equal(await node.sync_users_chunked([user(email, inbounds=[]) for email in many], chunk_size=17), [])
    assert not await served("2")

    failed = await node.sync_users_chunked([user("2"), bad_user("bad")])
    equal(([one.email for one in failed], failed.rejected), (["2", "bad"], True))
    assert failed.detail.startswith("failed to update users: user bad: "), failed.detail
    assert not await served("2"), "a refused list changes nobody"
    failed = await node.sync_users_chunked([])
    assert "no users received" in failed.detail, failed.detail


async def the_background_queue_gets_through(node, queue):
    async def flushed():
        async def empty():
            return not await queue.has_pending(node.node_id)

        await eventually("the queue is empty", empty)

    await node.update_user(user("2"))
    await flushed()
    assert await served("2")
    # More than one batch.
    await node.update_users([user(str(number)) for number in range(2000, 2150)] + [user("2", inbounds=[])])
    await flushed()
    assert not await served("2")

    # The client takes a refused batch apart until the bad one is alone; the others get through.
    await node.update_users([user("3000"), bad_user("bad"), user("3001"), user("2")])
    await flushed()
    assert await served("2")
    assert not node.requires_hard_reset(), "one bad user must not make the panel start the node anew"
    await node.update_users([user("bad"), user("2", inbounds=[])])
    await flushed()
    assert not await served("2")

    # A full list in the place of all that waits in the queue.
    async def load():
        return [user("1"), user("2")]

    await node.sync_users_from_source(load)
    assert await served("1") and await served("2")

    # To nodes that it takes for old ones, the client sends the queue as a stream of single users.
    await node.connect("0.1.9", SETUP["core_version"])
    await node.update_users([user("2", inbounds=[]), user("4000")])
    await flushed()
    assert not await served("2")
    await node.update_user(user("2"))
    await flushed()
    assert await served("2")
    assert not node.requires_hard_reset()
    await node.connect(SETUP["node_version"], SETUP["core_version"])


async def rules_come_and_go(node):
    async def routed(domain):
        route = await node.test_route(inbound_tag=VLESS, network="tcp", target_domain=domain, target_port=443)
        assert (route.inbound_tag, route.network, route.target_domain) == (VLESS, "tcp", domain), route
        return route.outbound_tag

    async def listed():
        return [(rule.outbound_tag, rule.rule_tag) for rule in (await node.list_routing_rules()).rules]

    lists = tuple(map(int, SETUP["core_version"].split("."))) >= (26, 1, 23)
    if lists:
        before = await listed()
    else:
        await refused(listed(), 501, "ListRoutingRules needs xray 26.1.23 or newer")
    await refused(routed("example.com"), 404, "no rule matches")
    rule = {"ruleTag": "examples", "domain": ["domain:example.com"], "outboundTag": OUTBOUND}
    await node.add_routing_rule(json.dumps(rule))
    assert await routed("www.example.com") == OUTBOUND
    if lists:
        assert await listed() == [*before, (OUTBOUND, "examples")]
    await refused(node.add_routing_rule(json.dumps({**rule, "domain": ["other.example"]})), 409, "duplicate ruleTag")
    await refused(node.add_routing_rule("{"), 400, "the rule is not valid JSON")
    await node.remove_routing_rule("examples")
    await refused(routed("example.com"), 404, "no rule matches")
    for call in (node.get_balancer_info("nosuch"), node.override_balancer_target("nosuch", OUTBOUND)):
        await refused(call, 404, 'balancer "nosuch" not found')


async def a_refused_start_leaves_the_core_alone(node):
    before = (await node.get_backend_stats()).uptime
    unknown = json.loads(json.dumps(SETUP["config"]))
    unknown["inbounds"][0]["protocol"] = "nosuch"
    await refused(start(node, [user("1")], config="{ not json"), 500, "the config is not valid JSON")
    await refused(start(node, [user("1")], config=unknown), 500, "nosuch")
    await refused(start(node, [user("1"), bad_user("bad")]), 500, "user bad: ")
    await refused(start(node, [], config="{}", backend_type=service.WIREGUARD), 501, "wireguard")
    assert (await node.info()).started
    assert (await node.get_backend_stats()).uptime >= before
    assert await served("1")


async def main():
    def step(title):
        print(f"{time.monotonic() - began:5.1f} s  {title}", flush=True)

    began = time.monotonic()
    print("Python", sys.version)
    step("certificate and key")
    the_certificate_is_accepted()
    await a_wrong_key_opens_nothing()

    queue = InMemoryUserSyncStore()
    async with panel(user_sync_store=queue, sync_poll_interval=0.05) as node:
        step("before a start")
        await nothing_is_there_without_a_start(node)
        step("start")
        await a_start_starts(node)
        await machine_and_core_are_described(node)
        step("traffic")
        await every_byte_is_counted(node)

        # It stays open while all that follows is done, so none of it starts the core anew.
        held = await connect("1")
        await held.begin(UP, DOWN)
        step("what can be watched")
        await who_is_online_is_told(node)
        await latencies_need_an_observatory(node)
        await logs_are_streamed(node)
        step("the same start again")
        await the_same_start_again_changes_nothing(node)
        step("full list")
        await a_full_list_replaces_everybody(node)
        step("chunked list")
        await a_chunked_list_changes_those_it_names(node)
        step("queue")
        await the_background_queue_gets_through(node, queue)
        step("routing")
        await rules_come_and_go(node)
        step("refused starts")
        await a_refused_start_leaves_the_core_alone(node)
        await held.finish()

        # A panel reconnects with a client object of its own.
        step("stop and start")
        await node.stop()
        async with panel() as another:
            await a_start_starts(another)
            step("stop")
            await another.stop()
            await nothing_is_there_without_a_start(another)
            assert not await served("1")
    step("passed")


asyncio.run(asyncio.wait_for(main(), PATIENCE))
