-- Requests with the header lines given, and another X-Request-ID each time.
-- wrk ... URL -- PATTERN PATH COUNT STEP CONTENT TURNS LINE ...
-- TURNS is a file of field lines, of which each request has the next one; an empty file for none.
--   hot     PATH itself
--   spread  PATH followed by COUNT multiples of STEP, in turn
--   zipf    PATH followed by COUNT multiples of STEP, their popularity Zipf's (exponent 1)
--   unique  PATH followed by a number that was never asked for before
--   mixed   nine of ten requests as spread, each tenth as unique
local format = string.format
counter, first, pattern, threads = 0, nil, nil, {}
local turn, every = 0, 0
local paths, method, prefix, before, behind, after
local turns = {}

local function sampled(count, step, samples)
  local sums, sum = {}, 0
  for rank = 1, count do
    sum = sum + 1 / rank
    sums[rank] = sum
  end
  local numbers = {}
  for index = 1, samples do
    local wanted, low, high = math.random() * sum, 1, count
    while low < high do
      local middle = math.floor((low + high) / 2)
      if sums[middle] < wanted then low = middle + 1 else high = middle end
    end
    numbers[index] = (low - 1) * step
  end
  return numbers
end

function setup(thread)
  threads[#threads + 1] = thread
end

function init(args)
  pattern, prefix = args[1], args[2]
  local count, step = tonumber(args[3]), tonumber(args[4])
  math.randomseed(os.time())
  first = format("%d-%d-", os.time(), math.random(1, 1e9))
  if pattern == "zipf" then
    paths = sampled(count, step, 200000)
  elseif pattern == "spread" or pattern == "mixed" then
    paths = {}
    for number = 0, count - 1 do paths[number + 1] = number * step end
  end
  if pattern == "unique" then every = 1 elseif pattern == "mixed" then every = 10 end
  local lines = { " HTTP/1.1" }
  for index = 7, #args do lines[#lines + 1] = args[index] end
  for line in io.lines(args[6]) do turns[#turns + 1] = "\r\n" .. line end
  before = table.concat(lines, "\r\n")
  behind = "\r\nX-Request-ID: 5f0c2f6e-8b1d-4c3e-9a55-"
  method = args[5] == "" and "GET " or "POST "
  after = "\r\n\r\n" .. args[5]
end

function request()
  counter = counter + 1
  local path = prefix
  if every > 0 and counter % every == 0 then
    path = prefix .. first .. counter
  elseif paths then
    turn = turn % #paths + 1
    path = prefix .. paths[turn]
  end
  local line = #turns > 0 and turns[counter % #turns + 1] or ""
  return method .. path .. before .. line .. behind .. (100000000000 + counter) .. after
end

-- The number of a miss so long ago that it has been answered.
local function missed(thread)
  local kind, asked = thread:get("pattern"), thread:get("counter")
  if asked < 300 or (kind ~= "unique" and kind ~= "mixed") then return "" end
  return thread:get("first") .. format("%d", math.floor(asked / 10 - 20) * 10)
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(format(
    'RESULT {"requests": %d, "seconds": %.6f, "bytes": %d, "failed": %d, "errors": "connect %d, read %d, write %d, status %d, timeout %d", "p50": %.1f, "p99": %.1f, "missed": "%s"}\n',
    summary.requests, summary.duration / 1e6, summary.bytes, e.connect + e.read + e.write + e.status + e.timeout,
    e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(99), missed(threads[1])))
end
