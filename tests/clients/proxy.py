#!/usr/bin/env python3
"""A loopback HTTP/1.1 proxy that breaks connections on purpose, the same way for the same seed.

Any POST with an Idempotency-Key may meet one of these faults:

  before  the client is dropped before its request is forwarded
  during  the whole request is forwarded, then both sides are dropped with the answer unread
  head    the whole answer is read, the client gets half of the answer's head and a reset
  body    the whole answer is read, the client gets half of its bytes, its whole head at least

No key meets more than --most faults. `GET /__faults` answers with the counts as JSON.

With several upstreams, the attempts at a key go to each of them in turn, and the first attempts
are spread as well. What one upstream does not accept is passed on to the next, as a load balancer
does it.
"""

import argparse
import asyncio
import collections
import json
import random
import socket
import struct

KINDS = ("before", "during", "head", "body")


async def read_message(reader, answers=None):
    """Reads one whole message: its start line's words, its fields, its head and body as sent.

    `answers` is the method of the request whose answer this is, or None for a request.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    start, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    start = start.split(" ")
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()

    if answers == "HEAD" or (answers and start[1] in ("204", "304")):
        body = b""
    elif fields.get("transfer-encoding", "").lower().endswith("chunked"):
        body = await read_chunks(reader)
    elif "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"]))
    else:
        # Only an answer may end with its connection.
        body = await reader.read() if answers else b""
        fields["connection"] = "close" if answers else fields.get("connection", "")
    return start, fields, head, body


async def read_chunks(reader):
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        body += line
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        body += await reader.readexactly(size + 2)
    while True:  # trailers, then an empty line
        line = await reader.readuntil(b"\r\n")
        body += line
        if line == b"\r\n":
            return body


def drop(writer, reset):
    """Closes a connection, with a reset instead of an orderly end if asked."""
    if writer is None or writer.is_closing():
        return
    if reset:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    else:
        writer.close()


Connection = collections.namedtuple("Connection", "turn reader writer")


class Proxy:
    def __init__(self, upstreams, seed, rate, kinds, most):
        self.upstreams, self.seed, self.rate, self.kinds = upstreams, seed, rate, kinds
        self.most = most
        self.keys = {}  # key -> [order of first appearance, attempts, faults]
        self.requests = [0 for _ in upstreams]
        self.counts = collections.Counter()

    def attempt(self, key):
        """The upstream that this attempt goes to, the fault that it meets, if any, and whether
        that is a reset.

        Each decision hangs on the key's place and the attempt's number alone, so that requests
        racing each other cannot change how many faults of each kind there are.
        """
        state = self.keys.setdefault(key, [len(self.keys), 0, 0])
        rng = random.Random(f"{self.seed}:{state[0]}:{state[1]}")
        turn = (state[0] + state[1]) % len(self.upstreams)
        state[1] += 1
        if state[2] >= self.most or rng.random() >= self.rate:
            return turn, None, False
        state[2] += 1
        kind = rng.choice(self.kinds)
        self.counts[kind] += 1
        # An orderly end inside a head reads as the end of the head to some clients.
        return turn, kind, kind == "head" or rng.random() < 0.5

    async def connect(self, turn, kept):
        """A connection to the upstream whose turn it is, or else to the next one that accepts it.

        It is the one that was kept, if that leads there.
        """
        if kept and kept.turn == turn and not kept.reader.at_eof() and not kept.writer.is_closing():
            return kept
        drop(kept and kept.writer, False)
        for there in range(turn, turn + len(self.upstreams)):
            there %= len(self.upstreams)
            try:
                return Connection(there, *await asyncio.open_connection(*self.upstreams[there]))
            except OSError:
                self.counts["passed_on"] += 1
        raise ConnectionRefusedError

    def summary(self):
        return {
            "seed": self.seed,
            "keys": len(self.keys),
            "attempts": sum(attempts for _, attempts, _ in self.keys.values()),
            "most_faults_of_a_key": max((faults for _, _, faults in self.keys.values()), default=0),
            "faults": {kind: self.counts[kind] for kind in self.kinds},
            "requests": self.requests,
            "passed_on": self.counts["passed_on"],
            "unanswered": self.counts["unanswered"],
        }

    async def serve(self, reader, writer):
        server = None  # kept for as long as the client stays
        reset = False
        try:
            while True:
                start, fields, head, body = await read_message(reader)
                method, path = start[0], start[1]
                if path == "/__faults":
                    answer = json.dumps(self.summary()).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
                    writer.write(b"content-length: %d\r\n\r\n%s" % (len(answer), answer))
                    await writer.drain()
                    continue

                turn, kind, key = 0, None, fields.get("idempotency-key")
                if method == "POST" and key:
                    turn, kind, reset = self.attempt(key)
                if kind == "before":
                    return

                server = await self.connect(turn, server)
                self.requests[server.turn] += 1
                try:
                    server.writer.write(head + body)
                    await server.writer.drain()
                    if kind == "during":
                        return
                    _, fields, head, body = await read_message(server.reader, method)
                except (asyncio.IncompleteReadError, OSError):
                    # A break that is not the proxy's: whoever runs the proxy wants to know.
                    self.counts["unanswered"] += 1
                    raise
                answer = head + body
                if kind == "head":
                    answer = head[: len(head) // 2]
                elif kind == "body":
                    answer = answer[: max(len(head), len(answer) // 2)]
                writer.write(answer)
                await writer.drain()
                if kind or fields.get("connection", "").lower() == "close":
                    return
        except (asyncio.IncompleteReadError, OSError):
            pass  # one of the two went away: so does the other
        except asyncio.CancelledError:
            pass  # the proxy is being stopped
        finally:
            drop(server and server.writer, reset)
            drop(writer, reset)


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--upstream", required=True, action="append", help="HOST:PORT to forward to; may be repeated"
    )
    parser.add_argument("--seed", default="1")
    parser.add_argument("--rate", type=float, default=0.45, help="how likely an attempt meets a fault")
    # Stripe's clients make two retries, so two faults still leave a third attempt that gets through.
    parser.add_argument("--most", type=int, default=2, help="how many faults a key may meet")
    parser.add_argument("--faults", default=",".join(KINDS), help="the kinds to choose from")
    options = parser.parse_args()
    kinds = options.faults.split(",")
    if not set(kinds) <= set(KINDS):
        parser.error(f"--faults takes some of {','.join(KINDS)}")

    upstreams = [upstream.rsplit(":", 1) for upstream in options.upstream]
    proxy = Proxy(upstreams, options.seed, options.rate, kinds, options.most)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, backlog=512)
    port = listener.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port} seed {options.seed}", flush=True)
    await listener.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
