-- A phone app's requests for wrk, as fast as the server answers: `make load-wrk URL=…`, or
--   wrk -t1 -c32 -d10s -s loadtests/session.lua URL -- [SESSION]
-- Reads the same file of paths as the Locust script, and tells the hit ratio from Cache-Status beside latency.
local threads = {}
local names, paths, total = {}, {}, 0
local counter = 0
kinds = { hit = 0, stale = 0, collapsed = 0, miss = 0, untold = 0 }

function setup(thread)
  threads[#threads + 1] = thread
end

local function numbers(first, last)
  local sums, sum = {}, 0
  for rank = 1, last - first + 1 do
    sum = sum + 1 / rank
    sums[rank] = sum
  end
  return { first = first, sums = sums, sum = sum }
end

local function pick(name)
  local chosen = names[name]
  local wanted, low, high = math.random() * chosen.sum, 1, #chosen.sums
  while low < high do
    local middle = math.floor((low + high) / 2)
    if chosen.sums[middle] < wanted then low = middle + 1 else high = middle end
  end
  return tostring(chosen.first + low - 1)
end

function init(args)
  math.randomseed(os.time())
  for line in io.lines(args[1] or "loadtests/session.txt") do
    local text = line:gsub("#.*", "")
    local name, first, last = text:match("^%s*let%s+([a-z_]+)%s+(%d+)%s+(%d+)%s*$")
    local share, path = text:match("^%s*(%d+)%s+(/%S*)%s*$")
    if name then
      names[name] = numbers(tonumber(first), tonumber(last))
    elseif share then
      total = total + tonumber(share)
      paths[#paths + 1] = { upto = total, path = path }
    elseif text:match("%S") then
      error("cannot read this line of the session: " .. line)
    end
  end
end

function request()
  counter = counter + 1
  local wanted, chosen = math.random() * total, nil
  for _, each in ipairs(paths) do
    if wanted <= each.upto then chosen = each.path break end
  end
  return wrk.format("GET", (chosen:gsub("{([a-z_]+)}", pick)), {
    ["Host"] = wrk.headers["Host"],
    ["User-Agent"] = "ShopApp/7.2.1 (iPhone; iOS 19.1; Scale/3.00)", ["Accept"] = "application/json",
    ["Accept-Language"] = "en-GB,en;q=0.9", ["Accept-Encoding"] = "gzip",
    ["X-App-Version"] = "7.2.1", ["X-Platform"] = "ios",
    ["X-Request-ID"] = string.format("5f0c2f6e-8b1d-4c3e-9a55-%012d", counter),
  })
end

local function kind(status)
  if not status then return "untold" end
  local last = status:match("[^,]*$")
  if last:find("; *collapsed") then return "collapsed" end
  if last:find("; *hit") then return last:find("; *ttl=%-") and "stale" or "hit" end
  return "miss"
end

function response(status, headers, body)
  local told = nil
  for name, value in pairs(headers) do
    if name:lower() == "cache-status" then told = value end
  end
  local found = kind(told)
  kinds[found] = kinds[found] + 1
end

function done(summary, latency, requests)
  local sums, all = { hit = 0, stale = 0, collapsed = 0, miss = 0, untold = 0 }, 0
  for _, thread in ipairs(threads) do
    for name, count in pairs(thread:get("kinds")) do
      sums[name] = sums[name] + count
      all = all + count
    end
  end
  local served = sums.hit + sums.stale
  io.write(string.format("\nhit ratio %.2f %%: %d hits, %d stale, %d collapsed, %d misses or passed by, %d without Cache-Status\n",
    all > 0 and 100 * served / all or 0, sums.hit, sums.stale, sums.collapsed, sums.miss, sums.untold))
  io.write(string.format("latency p50 %.2f ms, p99 %.2f ms, p99.9 %.2f ms; %.0f requests a second; %d failed\n",
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency:percentile(99.9) / 1000,
    summary.requests / summary.duration * 1e6,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status + summary.errors.timeout))
end
