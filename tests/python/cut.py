"""Reads reports of usage and comes to its end in every way, as tests/it/delivered.rs tells it: the first line is
about the node, each further one about one client. A client is a process of its own, so that it can be killed.

Says for each what it had when it ended: null, or the sum of a complete report; and how long the report was.
"""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time

import h2.config
import h2.connection
import h2.events
import h2.settings
from PasarGuardNodeBridge.common import service_pb2 as service

SETUP = json.loads(sys.stdin.readline())
# A client to which nothing comes any more waits for so long.
SILENCE = 0.4


class Ended(Exception):
    pass


def request(kind):
    return service.StatRequest(type=kind, reset=True).SerializeToString()


def total(message):
    return sum(stat.value for stat in service.StatResponse.FromString(message).stats)


class Client:
    """Over TLS, as far as `case` lets it come."""

    def __init__(self, case, say):
        self.case, self.say, self.read = case, say, 0
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=SETUP["certificate"])
        context.set_alpn_protocols([case["alpn"]])
        plain = socket.create_connection((SETUP["host"], SETUP["port"]), timeout=10)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain)

    def begin(self):
        """From here on the case decides."""
        if "drop" in self.case:
            firewall(self.case["drop"])
        if self.case["read"] == "nothing":
            time.sleep(SILENCE / 2)
            self.end()
        self.socket.settimeout(SILENCE if "drop" in self.case else 10)

    def asked(self):
        """The request is out."""
        if self.case.get("mute"):
            firewall({"output": 0})
        if self.case["read"] == "nothing":
            self.begin()

    def receive(self):
        try:
            data = self.socket.recv(1024)
        except TimeoutError:
            self.end()
        if not data:
            self.end()
        return data

    def has_read(self, count):
        """Ends where the case says so."""
        self.read += count
        if self.read >= self.case.get("pauses", self.read + 1):
            del self.case["pauses"]
            time.sleep(65)
        limit = self.case["read"]
        if isinstance(limit, int) and self.read >= limit:
            self.end()

    def end(self):
        then = self.case["then"]
        if self.case.get("vanishes"):
            firewall({"input": 0, "output": 0})
        if then == "cancel":
            self.cancel()
            # The rest of the connection goes on for a moment.
            time.sleep(SILENCE / 2)
        if then == "goodbye":
            self.say_goodbye()
        elif then == "again":
            self.ask_again()
        if then == "close":
            self.socket.close()
        elif then == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise Ended

    def say_goodbye(self):
        """Ends TLS in order, and TCP a moment later."""
        self.socket.setblocking(False)
        try:
            self.socket.unwrap()
        except (ssl.SSLError, OSError):
            pass
        time.sleep(SILENCE / 4)

    def ask_again(self):
        pass

    def complete(self, message):
        self.say({"sum": total(message), "length": self.read})
        self.end()

    def cancel(self):
        pass


class Http2(Client):
    def __init__(self, case, say):
        super().__init__(case | {"alpn": "h2"}, say)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.flush()
        self.stream = None
        if not case["first"]:
            self.call("GetBaseInfo", b"")
        if case["read"] != "nothing":
            self.begin()
        self.complete(self.call("GetStats", request(service.UsersStat)))

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def call(self, method, message):
        self.stream = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "node"),
            (":path", f"/service.NodeService/{method}"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("x-api-key", SETUP["api_key"]),
        ]
        self.h2.send_headers(self.stream, headers)
        framed = b"\0" + len(message).to_bytes(4, "big") + message
        self.h2.send_data(self.stream, framed, end_stream=True)
        self.flush()
        if method == "GetStats":
            self.asked()
        answer = b""
        while True:
            for event in self.h2.receive_data(self.receive()):
                if isinstance(event, h2.events.DataReceived):
                    answer += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, self.stream)
                    if method == "GetStats":
                        self.has_read(len(event.data))
                elif isinstance(event, h2.events.StreamEnded):
                    self.flush()
                    return answer[5:]
                elif isinstance(event, h2.events.ConnectionTerminated):
                    self.end()
            self.flush()

    def cancel(self):
        self.h2.reset_stream(self.stream, 8)
        self.flush()


class Http1(Client):
    def __init__(self, case, say):
        super().__init__(case | {"alpn": "http/1.1"}, say)
        if not case["first"]:
            self.call("/info", b"")
        if case["read"] != "nothing":
            self.begin()
        self.complete(self.call("/stats", request(service.UsersStat)))

    def call(self, path, body):
        head = f"GET {path} HTTP/1.1\r\nHost: node\r\nx-api-key: {SETUP['api_key']}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)
        if path == "/stats":
            self.asked()
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.receive()
        head, _, answer = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        if path == "/stats":
            self.has_read(len(answer))
        while len(answer) < length:
            fresh = self.receive()
            answer += fresh
            if path == "/stats":
                self.has_read(len(fresh))
        return answer

    def ask_again(self):
        """And ends with the reply unread."""
        self.socket.sendall(f"GET /info HTTP/1.1\r\nHost: node\r\nx-api-key: {SETUP['api_key']}\r\n\r\n".encode())
        time.sleep(SILENCE / 4)
        os.kill(os.getpid(), signal.SIGKILL)


def firewall(drop):
    """Drops packets of the node's port in this network namespace, after so many bytes of them."""
    rules = ["flush ruleset", "table inet cut {"]
    for hook, way in (("input", "sport"), ("output", "dport")):
        if hook in drop:
            match = f"tcp {way} {SETUP['port']} quota over {drop[hook]} bytes drop"
            rules.append(f"chain {hook} {{ type filter hook {hook} priority 0; {match}; }}")
    rules.append("}")
    subprocess.run(["nft", "-f", "-"], input="\n".join(rules).encode(), check=True)


def main():
    if "netns" in SETUP:
        os.setns(os.open(SETUP["netns"], os.O_RDONLY), os.CLONE_NEWNET)
    for line in sys.stdin:
        case = json.loads(line)
        stays_cut_off = case.get("vanishes") or case.get("mute")
        if "netns" in SETUP:
            subprocess.run(["nft", "flush", "ruleset"], check=True)
        heard, told = os.pipe()
        child = os.fork()
        if child == 0:
            say = lambda word: os.write(told, json.dumps(word).encode())
            try:
                (Http2 if case["http2"] else Http1)(case, say)
            except (Ended, OSError):
                pass
            except BaseException as error:
                say({"error": repr(error)})
            os._exit(0)
        os.close(told)
        with os.fdopen(heard) as said:
            words = said.read()
        os.waitpid(child, 0)
        # Its kernel's last words come through, unless it is never heard of again.
        if "netns" in SETUP and not stays_cut_off:
            subprocess.run(["nft", "flush", "ruleset"], check=True)
        print(words or "null", flush=True)


main()
