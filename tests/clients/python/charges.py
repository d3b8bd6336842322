#!/usr/bin/env python3
"""Stripe's own Python client, unmodified, charges through connections that break.

Everything it was told must be in the server's list, once, and nothing else.

    charges.py SERVER BREAKING CUTTING

SERVER is the payments server, or a proxy that spreads requests over several. BREAKING and CUTTING
are proxies in front of it: the client gets over BREAKING's faults by itself; CUTTING's it hands to
its caller, see `insist`.
"""

import itertools
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import stripe

# `StripeClient` leaves retries off unless told; the package's own default is what its other, global
# interface uses.
server, breaking, cutting = (
    stripe.StripeClient(
        "sk_test_clients",
        base_addresses={"api": url},
        max_network_retries=stripe.max_network_retries,
    )
    for url in sys.argv[1:]
)

# What the server has answered: the id of each charge, and the `n` that was asked of it.
told = {}
lock = threading.Lock()


def check(holds, *what):
    # Not `assert`, which `python -O` leaves out.
    if not holds:
        raise AssertionError(*what)


def charge(client, n, *, source="tok_visa", amount=2000, key=None):
    params = {"amount": amount, "currency": "usd", "source": source, "metadata": {"n": str(n)}}
    # Without a key the client makes one of its own for each call.
    charge = client.v1.charges.create(params, {"idempotency_key": key} if key else {})
    check(charge.object == "charge", charge)
    check(charge.amount == amount, charge)
    check(charge.metadata.to_dict() == {"n": str(n)}, charge)
    with lock:
        check(told.setdefault(charge.id, str(n)) == str(n), f"{charge.id} for another call")
    return charge.id


def each(count, width, task):
    """Calls `task` with 0..count, no more than `width` of them at a time."""
    with ThreadPoolExecutor(width) as pool:
        return list(pool.map(task, range(count)))


def insist(call):
    """Makes a call again that the client could not bring to an end, and counts the repeats.

    The client does not retry an answer that breaks off in its body, it reports it. Its caller then
    does what Stripe's documentation says: the same call with the same key.
    """
    for repeats in itertools.count():
        try:
            call()
            return repeats
        except stripe.APIConnectionError:
            if repeats == 2:
                raise


def raised(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def ledger(count):
    """Checks that `count` charges were told of and that the server made exactly these."""
    check(len(told) == count, "charges the client was told of", len(told), count)
    pages = server.v1.charges.list({"limit": 100}).auto_paging_iter()
    listed = [(charge.id, charge.metadata["n"]) for charge in pages]
    unknown = [one for one in listed if told.get(one[0]) != one[1]]
    check(not unknown, "charges nobody knows of", unknown)
    check(len(listed) == count, "charges the server made", len(listed), count)


def breaking_connections():
    # Every fifth is slow, for connections to break while the charge is being made.
    each(200, 20, lambda n: charge(breaking, n, source="tok_visa" if n % 5 else "tok_slow"))
    ledger(200)


def cut_answers():
    def one(n):
        key = str(uuid.uuid4())
        return insist(lambda: charge(cutting, 200 + n, key=key))

    repeats = sum(each(60, 20, one))
    check(repeats >= 10, f"{repeats} repeats")
    ledger(260)


def one_key():
    key = str(uuid.uuid4())
    each(100, 100, lambda _: charge(server, "one", key=key, source="tok_slow"))
    ledger(261)


def one_key_breaking():
    key = str(uuid.uuid4())
    each(100, 100, lambda _: charge(breaking, "one broken", key=key))
    ledger(262)


def slow():
    first, second = each(2, 2, lambda _: charge(server, "slow", key="slow", source="tok_slow"))
    check(first == second, first, second)
    ledger(263)


def declined():
    answers = []
    for _ in range(2):
        source = "tok_chargeDeclined"
        error = raised(
            stripe.CardError, lambda: charge(server, "declined", key="declined", source=source)
        )
        check(error.http_status == 402, error)
        check(error.code == "card_declined", error)
        answers.append(error.json_body)
    check(answers[0] == answers[1], answers)
    ledger(263)


def another_amount():
    first = charge(server, "amount", key="amount", amount=2000)
    raised(stripe.IdempotencyError, lambda: charge(server, "amount", key="amount", amount=2001))
    check(charge(server, "amount", key="amount", amount=2000) == first)
    ledger(264)


STEPS = {
    "200 charges through breaking connections": breaking_connections,
    "60 charges through answers cut in their body": cut_answers,
    "100 calls at once with one key": one_key,
    "100 calls at once with one key through breaking connections": one_key_breaking,
    "a slow charge asked for twice": slow,
    "a declined card stays declined": declined,
    "a key used again for another amount": another_amount,
}

for name, step in STEPS.items():
    start = time.monotonic()
    step()
    print(f"  ok    {name} ({time.monotonic() - start:.1f} s)", flush=True)
