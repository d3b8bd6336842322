// Stripe's own Node client, unmodified and with its default retries, charges through connections
// that break. Everything it was told must be in the server's list, once, and nothing else.
//
//   node charges.mjs SERVER BREAKING CUTTING
//
// SERVER is the payments server, or a proxy that spreads requests over several. BREAKING and CUTTING
// are proxies in front of it: the client gets over BREAKING's faults by itself; CUTTING's it hands to
// its caller, see `insist`.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import Stripe from 'stripe';

const [server, breaking, cutting] = process.argv.slice(2).map((url) => {
  const { hostname, port } = new URL(url);
  return new Stripe('sk_test_clients', { protocol: 'http', host: hostname, port: Number(port) });
});
const { StripeCardError, StripeConnectionError, StripeIdempotencyError } = Stripe.errors;

// What the server has answered: the id of each charge, and the `n` that was asked of it.
const told = new Map();

async function charge(client, n, { source = 'tok_visa', amount = 2000, key } = {}) {
  const params = { amount, currency: 'usd', source, metadata: { n: String(n) } };
  // Without a key the client makes one of its own for each call.
  const charge = await client.charges.create(params, key ? { idempotencyKey: key } : {});
  assert.equal(charge.object, 'charge');
  assert.equal(charge.amount, amount);
  assert.deepEqual({ ...charge.metadata }, { n: String(n) });
  assert.ok([undefined, String(n)].includes(told.get(charge.id)), `${charge.id} for another call`);
  told.set(charge.id, String(n));
  return charge.id;
}

// Calls `task` with 0..count, no more than `width` of them at a time.
async function each(count, width, task) {
  let next = 0;
  const work = async () => {
    while (next < count) await task(next++);
  };
  await Promise.all(Array.from({ length: width }, work));
}

// The client does not retry an answer that breaks off in its body, it reports it. Its caller then
// does what Stripe's documentation says: the same call with the same key.
async function insist(call) {
  for (let repeats = 0; ; repeats++) {
    try {
      await call();
      return repeats;
    } catch (error) {
      if (!(error instanceof StripeConnectionError) || repeats === 2) throw error;
    }
  }
}

// Checks that `count` charges were told of and that the server made exactly these.
async function ledger(count) {
  assert.equal(told.size, count, 'charges the client was told of');
  const listed = [];
  for await (const { id, metadata } of server.charges.list({ limit: 100 })) {
    listed.push([id, metadata.n]);
  }
  assert.deepEqual(listed.filter(([id, n]) => told.get(id) !== n), [], 'charges nobody knows of');
  assert.equal(listed.length, count, 'charges the server made');
}

const steps = {
  '200 charges through breaking connections': async () => {
    // Every fifth is slow, for connections to break while the charge is being made.
    await each(200, 20, (n) => charge(breaking, n, { source: n % 5 ? 'tok_visa' : 'tok_slow' }));
    await ledger(200);
  },
  '60 charges through answers cut in their body': async () => {
    let repeats = 0;
    await each(60, 20, async (n) => {
      const key = randomUUID();
      const again = await insist(() => charge(cutting, 200 + n, { key }));
      repeats += again;
    });
    assert.ok(repeats >= 10, `${repeats} repeats`);
    await ledger(260);
  },
  '100 calls at once with one key': async () => {
    const key = randomUUID();
    await each(100, 100, () => charge(server, 'one', { key, source: 'tok_slow' }));
    await ledger(261);
  },
  '100 calls at once with one key through breaking connections': async () => {
    const key = randomUUID();
    await each(100, 100, () => charge(breaking, 'one broken', { key }));
    await ledger(262);
  },
  'a slow charge asked for twice': async () => {
    const call = () => charge(server, 'slow', { key: 'slow', source: 'tok_slow' });
    const [first, second] = await Promise.all([call(), call()]);
    assert.equal(first, second);
    await ledger(263);
  },
  'a declined card stays declined': async () => {
    const errors = [];
    for (let i = 0; i < 2; i++) {
      const source = 'tok_chargeDeclined';
      const error = await charge(server, 'declined', { key: 'declined', source }).catch((e) => e);
      assert.ok(error instanceof StripeCardError, error);
      assert.equal(error.statusCode, 402);
      assert.equal(error.code, 'card_declined');
      const { headers, requestId, ...answer } = error.raw;
      errors.push(answer);
    }
    assert.deepEqual(errors[0], errors[1]);
    await ledger(263);
  },
  'a key used again for another amount': async () => {
    const first = await charge(server, 'amount', { key: 'amount', amount: 2000 });
    const other = charge(server, 'amount', { key: 'amount', amount: 2001 });
    await assert.rejects(other, (error) => error instanceof StripeIdempotencyError);
    assert.equal(await charge(server, 'amount', { key: 'amount', amount: 2000 }), first);
    await ledger(264);
  },
};

for (const [name, step] of Object.entries(steps)) {
  const start = Date.now();
  await step();
  console.log(`  ok    ${name} (${((Date.now() - start) / 1000).toFixed(1)} s)`);
}

// When the client retries an answer such as a 503, it leaves that unread, and its connection would
// keep this process alive until the client's timeout.
process.exit();
