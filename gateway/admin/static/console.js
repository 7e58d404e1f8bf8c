"use strict";
// The console: live figures by server-sent events, routes with what other TTLs would do, look-ups, purges, the audit
// list. Everything that comes from the gateway is put into the page as text, never as markup.

const KEY = "gateway-admin-token";
const KEEP = 300;
const state = { token: sessionStorage.getItem(KEY) || "", routes: [], chosen: null, figures: null, stream: null };
const $ = (id) => document.getElementById(id);

function h(tag, attributes, ...children) {
  const svg = ["svg", "path", "circle", "line", "text"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

// --- words and numbers ---------------------------------------------------------------------------------------

const number = (value, digits = 1) =>
  value === null || value === undefined ? "–" : value >= 1000 ? Math.round(value).toLocaleString("en") : value >= 100 ? value.toFixed(0) : value.toFixed(value === 0 ? 0 : digits);
const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : (value * 100).toFixed(digits) + " %");
const time = (seconds) => (seconds === null || seconds === undefined ? "–" : seconds < 1 ? `${+(seconds * 1000).toPrecision(3)} ms` : `${+seconds.toPrecision(3)} s`);
const bytes = (value) => {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) if (value >= size) return `${(value / size).toFixed(1)} ${unit}`;
  return `${value} B`;
};
const duration = (seconds) => {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["m", 60]]) if (seconds >= 2 * size || seconds === size) return `${+(seconds / size).toPrecision(3)}${unit}`;
  return `${+seconds.toPrecision(3)}s`;
};
const when = (seconds) => new Date(seconds * 1000).toLocaleString();

// --- speaking to the gateway ---------------------------------------------------------------------------------

class Refused extends Error {}

async function ask(path, order, method) {
  const response = await fetch(path, {
    method: method || (order === undefined ? "GET" : "POST"),
    headers: { authorization: `Bearer ${state.token}`, ...(order === undefined ? {} : { "content-type": "application/json" }) },
    body: order === undefined ? undefined : JSON.stringify(order),
    cache: "no-store",
  });
  const body = await response.json().catch(() => ({}));
  if (response.status === 401 || response.status === 403) throw new Refused(body.detail || "The token was refused.");
  if (!response.ok) throw new Error(body.detail || `The gateway returned ${response.status}.`);
  return body;
}

async function follow() {
  const stop = new AbortController();
  state.stream = stop;
  while (!stop.signal.aborted) {
    try {
      const response = await fetch("live", { headers: { authorization: `Bearer ${state.token}` }, signal: stop.signal, cache: "no-store" });
      if (!response.ok) throw new Refused("The token was refused.");
      say("Live", "live");
      await read(response.body.getReader());
    } catch (error) {
      if (stop.signal.aborted) return;
      if (error instanceof Refused) return leave(error.message);
    }
    say("The gateway can't be reached; retrying", "lost");
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function read(reader) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += decoder.decode(value, { stream: true });
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) if (event.startsWith("data: ")) showFigures(JSON.parse(event.slice(6)));
  }
}

// --- now -----------------------------------------------------------------------------------------------------

const history = { at: [], rate: [], hits: [] };
const charts = {};

const workersEnded = (figures) => figures.worker_deaths
  ? `answer; ${number(figures.worker_deaths, 0)} replaced` + (figures.workers_unresponsive ? `, ${number(figures.workers_unresponsive, 0)} of them unresponsive` : "")
  : "answer";

function tile(name, value, unit) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value, unit ? h("small", {}, ` ${unit}`) : null));
}

function showFigures(figures) {
  state.figures = figures;
  const redis = figures.redis_available === null ? "none" : figures.redis_available ? (figures.redis_milliseconds === null ? "here" : `${number(figures.redis_milliseconds, 2)} ms`) : "away";
  $("tiles").replaceChildren(
    tile("requests", number(figures.rate), "/s"), tile("hit ratio", percent(figures.hit_ratio)),
    tile("collapsed", number(figures.collapsed), "/s"), tile("refreshed behind", number(figures.refreshes), "/s"),
    tile("refused", number(figures.refused), "/s"),
    tile("memory", bytes(figures.memory_bytes), `of ${bytes(figures.memory_limit)}, ${number(figures.memory_entries, 0)} entries`),
    tile("workers", number(figures.workers, 0), workersEnded(figures)),
    tile("Redis", redis, figures.redis_failures ? `${number(figures.redis_failures)} failures/s` : ""),
  );
  const order = Object.entries(figures.outcomes).sort((a, b) => b[1].rate - a[1].rate);
  $("outcomes").replaceChildren(...order.map(([name, each]) => h("tr", {}, h("th", { scope: "row" }, name.replace("_", " ")), n(number(each.rate)), n(time(each.p50)), n(time(each.p99)))));
  $("upstream-rows").replaceChildren(...Object.entries(figures.upstreams).map(([name, each]) => {
    const [word, look] = !each.breaker && each.unhealthy ? [`${each.unhealthy} unhealthy`, "bad"] : [["closed", "good"], ["trying", "warn"], ["open", "bad"]][each.breaker] || ["?", ""];
    return h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: look }, word), n(number(each.rate)), n(number(each.failed), each.failed ? "n bad" : "n"), n(number(each.in_flight, 0)), n(time(each.p50)), n(time(each.p99)));
  }));
  remember(figures);
  $("chart-rate").setAttribute("aria-label", `Requests per second over the last five minutes, now ${number(figures.rate)}`);
  $("chart-hits").setAttribute("aria-label", `Hit ratio over the last five minutes, now ${percent(figures.hit_ratio)}`);
  for (const row of $("route-rows").children) {
    const mine = figures.routes[row.dataset.route];
    row.querySelector(".rate").textContent = number(mine ? mine.rate : 0);
    row.querySelector(".hits").textContent = percent(mine ? mine.hit_ratio : null);
  }
}

const n = (text, look) => h("td", { class: look || "n" }, text);

function remember(figures) {
  history.at.push(figures.at);
  history.rate.push(figures.rate);
  history.hits.push(figures.hit_ratio === null ? null : figures.hit_ratio * 100);
  for (const each of Object.values(history)) if (each.length > KEEP) each.shift();
  draw("chart-rate", history.rate, undefined);
  draw("chart-hits", history.hits, [0, 100]);
}

function draw(id, values, range) {
  const style = getComputedStyle(document.documentElement);
  const box = $(id);
  if (!box.clientWidth) return;
  if (!charts[id]) {
    const axis = { stroke: style.getPropertyValue("--dim"), grid: { stroke: style.getPropertyValue("--line"), width: 1 }, ticks: { show: false } };
    charts[id] = new uPlot({
      width: box.clientWidth, height: 160, legend: { show: false }, cursor: { show: false },
      scales: { y: range ? { range } : { range: (_, low, high) => [0, Math.max(1, high * 1.1)] } },
      axes: [axis, { ...axis, size: 46 }],
      series: [{}, { stroke: style.getPropertyValue("--accent"), width: 2, points: { show: false } }],
    }, [history.at, values], box);
  } else charts[id].setData([history.at, values]);
}

addEventListener("resize", () => { for (const [id, chart] of Object.entries(charts)) chart.setSize({ width: $(id).clientWidth, height: 160 }); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const id of Object.keys(charts)) { charts[id].destroy(); delete charts[id]; } });

// --- routes --------------------------------------------------------------------------------------------------

async function refreshRoutes() {
  const { routes } = await ask("routes");
  const focused = $("route-rows").contains(document.activeElement) ? document.activeElement : null;
  state.routes = routes;
  const rows = new Map([...$("route-rows").children].map((row) => [row.dataset.route, row]));
  $("route-rows").replaceChildren(...routes.map((route) => kept(rows.get(route.name), routeRow(route))));
  if (focused && focused.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
  if (state.figures) showFigures(state.figures);
  if (state.chosen) tune(state.chosen, true);
}

// A row that stays keeps its name, and with it the keyboard's focus; its other cells are new.
function kept(old, row) {
  if (!old || old.firstChild.textContent !== row.firstChild.textContent || old.querySelectorAll("button").length !== row.querySelectorAll("button").length) return row;
  old.className = row.className;
  old.replaceChildren(old.firstChild, ...[...row.children].slice(1));
  return old;
}

function routeRow(route) {
  const today = route.advice && route.ttl !== null ? at(route.advice, route.ttl) : null;
  return h("tr", { "data-route": route.name, class: route.name === state.chosen ? "chosen" : "" },
    h("th", { scope: "row" }, route.advice ? h("button", { type: "button", class: "link", "aria-controls": "tune", "aria-expanded": String(route.name === state.chosen), onclick: () => tune(route.name) }, route.name) : route.name, h("small", { class: "phone" }, route.path)),
    h("td", { class: "wide" }, route.path), h("td", {}, route.shown), h("td", { class: "wrap" }, route.sources[0] || "default"),
    h("td", { class: "n rate" }, "–"), h("td", { class: "n hits" }, "–"),
    n(today ? `${number(today.upstream, 2)}/s` : "–"), h("td", {}, route.advice ? curve(route) : "nothing seen yet"));
}

function curve(route) {
  const rungs = route.advice.rungs;
  const place = (rung, index) => [2 + (index * 116) / (rungs.length - 1), 24 - rung.hit_ratio * 22];
  const path = rungs.map((rung, index) => `${index ? "L" : "M"}${place(rung, index).map((v) => v.toFixed(1)).join(" ")}`).join("");
  const here = route.ttl === null ? -1 : nearest(rungs, route.ttl);
  const [x, y] = here >= 0 ? place(rungs[here], here) : [-9, -9];
  return h("svg", { class: "curve", viewBox: "0 0 120 26", role: "img", "aria-label": `Hit ratio from ${percent(rungs[0].hit_ratio)} at 1 s to ${percent(rungs[rungs.length - 1].hit_ratio)} at a day` },
    h("path", { d: path }), h("circle", { cx: x, cy: y, r: 3 }));
}

const nearest = (rungs, ttl) => rungs.reduce((best, rung, index) => (Math.abs(Math.log(rung.ttl / ttl)) < Math.abs(Math.log(rungs[best].ttl / ttl)) ? index : best), 0);

function at(advice, ttl) {
  const rungs = advice.rungs;
  if (ttl <= rungs[0].ttl) return rungs[0];
  for (let i = 1; i < rungs.length; i++) {
    if (ttl > rungs[i].ttl) continue;
    const [a, b] = [rungs[i - 1], rungs[i]];
    const part = (1 / a.ttl - 1 / ttl) / (1 / a.ttl - 1 / b.ttl);
    const straight = (ttl - a.ttl) / (b.ttl - a.ttl);
    return { ttl, hit_ratio: a.hit_ratio + (b.hit_ratio - a.hit_ratio) * part, upstream: a.upstream + (b.upstream - a.upstream) * part, outdated: a.outdated + (b.outdated - a.outdated) * straight, seen: b.seen };
  }
  return rungs[rungs.length - 1];
}

function tune(name, keep) {
  const route = state.routes.find((each) => each.name === name);
  if (!route || !route.advice) return;
  state.chosen = name;
  for (const row of $("route-rows").children) {
    row.className = row.dataset.route === name ? "chosen" : "";
    row.querySelector("button")?.setAttribute("aria-expanded", String(row.dataset.route === name));
  }
  const advice = route.advice;
  $("tune").hidden = false;
  $("tune-h").textContent = `${name}: ${route.shown} today`;
  const changes = advice.changes.rate ? `content changes about every ${duration(1 / advice.changes.rate)}` : "no change of content was seen";
  const compared = advice.changes.fetches ? `${changes} (${number(advice.changes.fetches, 0)} fetches compared)` : "how often content changes is not known, as nothing was fetched twice yet";
  $("tune-seen").textContent = `Estimated from ${number(advice.requests, 0)} requests in ${duration(advice.seconds)}; ${compared}.`;
  $("tune-ttl").max = advice.rungs.length - 1;
  if (!keep) {
    $("tune-ttl").value = route.ttl === null ? 0 : nearest(advice.rungs, route.ttl);
    $("tune-said").textContent = "";
    $("tune").scrollIntoView({ block: "nearest" });
    $("tune-ttl").focus({ preventScroll: true });
  }
  $("tune-reset").hidden = !route.overridden;
  foretell();
}

function foretell() {
  const route = state.routes.find((each) => each.name === state.chosen);
  if (!route) return;
  const rung = route.advice.rungs[$("tune-ttl").value];
  const today = route.ttl === null ? null : at(route.advice, route.ttl);
  const from = (text) => (today ? `from ${text}` : "");
  const known = route.advice.changes.fetches > 0;
  const watched = rung.seen ? "" : " (longer than the traffic was watched)";
  put("tune-value", duration(rung.ttl) + watched);
  $("tune-ttl").setAttribute("aria-valuetext", duration(rung.ttl) + watched);
  const tiles = h("dl", {},
    tile("hit ratio", percent(rung.hit_ratio), from(today && percent(today.hit_ratio))),
    tile("upstream requests", `${number(rung.upstream, 2)}/s`, from(today && `${number(today.upstream, 2)}/s`)),
    tile("outdated answers", known ? percent(rung.outdated, 2) : "not known", known ? from(today && percent(today.outdated, 2)) : ""),
  );
  // It is read aloud when it changes: not each time that the figures come anew.
  if ($("tune-tiles").innerHTML !== tiles.innerHTML) $("tune-tiles").replaceChildren(...tiles.childNodes);
  $("tune-curve").replaceChildren(bigCurve(route, rung, known));
}

function put(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

// The hit ratio and the outdated share by TTL: where it is today, and where the slider stands.
function bigCurve(route, chosen, known) {
  const rungs = route.advice.rungs;
  const [width, height, left, top, bottom] = [$("tune-curve").clientWidth || 720, 150, 48, 8, 22];
  const x = (position) => left + (position * (width - left - 16)) / (rungs.length - 1);
  const y = (share) => height - bottom - share * (height - top - bottom);
  const path = (name) => rungs.map((rung, position) => `${position ? "L" : "M"}${x(position).toFixed(1)} ${y(rung[name]).toFixed(1)}`).join("");
  const label = (text, attributes) => h("text", attributes, text);
  const lines = [0, 0.5, 1].map((share) => h("line", { class: "grid", x1: left, x2: width - 16, y1: y(share), y2: y(share) }));
  const ticks = rungs.flatMap((rung, position) => (position % 4 && position !== rungs.length - 1 ? [] : [label(duration(rung.ttl), { x: x(position), y: height - 6, "text-anchor": "middle" })]));
  const upright = (position, look) => h("line", { class: look, x1: x(position), x2: x(position), y1: top, y2: height - bottom });
  const places = [upright(rungs.indexOf(chosen), "chosen")];
  if (route.ttl !== null) places.unshift(upright(nearest(rungs, route.ttl), "today"));
  return h("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `By TTL, from 1 s to a day: hit ratio from ${percent(rungs[0].hit_ratio)} to ${percent(rungs[rungs.length - 1].hit_ratio)}` + (known ? `, outdated answers from ${percent(rungs[0].outdated)} to ${percent(rungs[rungs.length - 1].outdated)}` : "") },
    ...lines, label("0 %", { x: left - 6, y: y(0) + 4, "text-anchor": "end" }), label("100 %", { x: left - 6, y: y(1) + 6, "text-anchor": "end" }),
    ...ticks, ...places, h("path", { class: "hits", d: path("hit_ratio") }), known ? h("path", { class: "outdated", d: path("outdated") }) : null);
}

// --- doing things --------------------------------------------------------------------------------------------

function doing(id, work) {
  return async (event) => {
    event.preventDefault();
    const said = $(id);
    said.classList.remove("error");
    try {
      said.textContent = await work();
    } catch (error) {
      if (error instanceof Refused) return leave(error.message);
      said.classList.add("error");
      said.textContent = error.message;
    }
    refresh();
  };
}

const report = (found) => `${found.confirmed} of ${found.workers} workers have confirmed, in ${time(found.seconds)}.${found.complete ? "" : ` ${found.detail}`}`;

$("tune-form").addEventListener("submit", doing("tune-said", async () => {
  const route = state.routes.find((each) => each.name === state.chosen);
  const ttl = duration(route.advice.rungs[$("tune-ttl").value].ttl);
  const answer = await ask("overrides", { route: route.name, setting: "ttl", value: ttl, for: $("tune-for").value });
  return `${route.name} lives ${ttl} until ${when(answer.until)}, on all workers within a second.`;
}));
$("tune-reset").addEventListener("click", doing("tune-said", async () => {
  await ask(`overrides/${encodeURIComponent(state.chosen)}/ttl`, undefined, "DELETE");
  return "The override is removed.";
}));
$("tune-ttl").addEventListener("input", foretell);

const asked = () => {
  const [, method, target] = /^(?:([A-Z]+) +)?(.*)$/.exec($("explain-target").value.trim());
  return { method: method || ($("explain-data").value ? "QUERY" : "GET"), target };
};
$("explain-form").addEventListener("submit", doing("explained", async () => {
  const headers = $("explain-headers").value.split("\n").filter((line) => line.includes(":")).map((line) => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon).trim(), line.slice(colon + 1).trim()];
  });
  const data = $("explain-data").value;
  if (data && !headers.some(([name]) => name.toLowerCase() === "content-type")) headers.push(["Content-Type", "application/json"]);
  return (await ask("explain?text=1", { ...asked(), headers, ...(data ? { data } : {}) })).text;
}));
$("explain-purge").addEventListener("click", doing("explained", async () => report(await ask("purge", { keys: [asked().target] }))));
$("purge-form").addEventListener("submit", doing("purged", async () => {
  const [what, name] = [$("purge-what").value, $("purge-name").value.trim()];
  if (what !== "all" && !name) throw new Error("A name is required.");
  if (what === "all" && !confirm("Purge everything? All responses are then fetched again, from all upstreams at once.")) return "Nothing was purged.";
  return report(await ask("purge", { ...(what === "all" ? { all: true } : { [what]: [name] }), soft: $("purge-soft").checked }));
}));
$("purge-what").addEventListener("change", () => { $("purge-name").disabled = $("purge-what").value === "all"; });

async function refreshAudit() {
  const { events } = await ask("audit");
  rows("audit-rows", events.map((each) => h("tr", {}, h("td", {}, when(each.at)), h("td", {}, each.by), h("td", {}, each.what), h("td", { class: "wrap" }, each.detail))), "Nothing was changed or purged yet.");
}

// The rows of a table, unchanged if they are the same, so that keyboard focus stays.
function rows(id, made, nothing) {
  const columns = $(id).closest("table").querySelectorAll("thead th").length;
  const now = h("tbody", {}, ...(made.length ? made : [h("tr", {}, h("td", { colspan: columns, class: "hint" }, nothing))]));
  if ($(id).innerHTML !== now.innerHTML) $(id).replaceChildren(...now.childNodes);
}

async function refreshOverrides() {
  const { overrides } = await ask("overrides");
  rows("override-rows", overrides.map((each) => h("tr", {}, h("th", { scope: "row" }, `${each.route}.${each.setting}`), h("td", {}, each.value), h("td", {}, when(each.until)), h("td", {}, each.by),
    h("td", {}, h("button", { type: "button", "aria-label": `End ${each.route}.${each.setting}`, onclick: (event) => end(each, event) }, "End")))), "None is in force.");
}

const end = (override, event) => doing("override-said", async () => {
  await ask(`overrides/${encodeURIComponent(override.route)}/${encodeURIComponent(override.setting)}`, undefined, "DELETE");
  $("overrides-h").focus();
  return `${override.route}.${override.setting} is as configured again.`;
})(event);

async function refresh() {
  try {
    await Promise.all([refreshRoutes(), refreshOverrides(), refreshAudit()]);
  } catch (error) {
    if (error instanceof Refused) leave(error.message);
  }
}

// --- coming and going ----------------------------------------------------------------------------------------

function say(text, look) {
  $("state").textContent = text;
  $("state").className = look || "";
}

function leave(why) {
  if (state.stream) state.stream.abort();
  clearInterval(state.timer);
  sessionStorage.removeItem(KEY);
  state.token = "";
  $("console").hidden = true;
  $("leave").hidden = true;
  $("login").hidden = false;
  $("login-error").textContent = why || "";
  say("Not connected");
  $("token").focus();
}

async function enter() {
  try {
    await ask("audit");
  } catch (error) {
    return leave(error.message);
  }
  sessionStorage.setItem(KEY, state.token);
  $("login").hidden = true;
  $("console").hidden = false;
  $("leave").hidden = false;
  follow();
  await refresh();
  state.timer = setInterval(refresh, 5000);
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value;
  $("token").value = "";
  enter();
});
$("leave").addEventListener("click", () => leave(""));
if (state.token) enter();
else $("token").focus();
