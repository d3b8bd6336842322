-- Sends 1 KB under an idempotency key of 36 bytes, to wrk's one thread:
--
--     wrk ... -s load.lua URL -- PREFIX KEYS
--
-- Each key begins with PREFIX, of 16 bytes. KEYS is how many there are, used in turn; 0 for a new
-- one with each request, and -1 for requests without one. What came of it is the last line, in JSON.

local head, tail, keys
local sent = 0

function init(args)
  keys = tonumber(args[2])
  local body = string.rep("b", 1024)
  local lines = {
    "POST /v1/charges HTTP/1.1",
    "Host: 127.0.0.1",
    "Authorization: Bearer sk_test_123",
    "Content-Type: application/json",
    "Content-Length: " .. #body,
    keys < 0 and "X-Other: " .. args[1] or "Idempotency-Key: " .. args[1],
  }
  head = table.concat(lines, "\r\n")
  tail = "\r\n\r\n" .. body
end

function request()
  sent = sent + 1
  return head .. string.format("%020d", keys > 0 and sent % keys or sent) .. tail
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "p50": %d, "p99": %d, "p99.9": %d, "refused": %d, "failed": %d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
