// Run the suite's client over all of its tests or some of them.
//
// usage: node client.mjs OPTIONS_FILE
// options: {package (its folder), engine (the folder of its client and server), output (a file), base,
//           ids (null: all), trace (bool), timeout (ms, of each request)}
//
// It does what the suite's own command does (the same tests in the same order through the same
// runner), and beyond that: no request can hang, several ids can be chosen, and it
// hands back the catalogue of tests and, if asked to, what went over the wire.
import fs from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const options = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'))
const load = file => import(pathToFileURL(path.join(options.package, file)))

const engine = file => import(pathToFileURL(path.join(options.engine, file)))
const { runTests, getResults } = await engine('client/runner.mjs')
const { default: suites } = await load('tests/index.mjs')
// what 0.4.5 has of tests for CDNs stands apart; later sources count theirs in
const isPackage = fs.existsSync(path.join(options.package, 'tests/surrogate-control.mjs'))
if (isPackage) suites.push((await load('tests/surrogate-control.mjs')).default)
const fetch = isPackage
  ? createRequire(path.join(options.package, 'cli.mjs'))('node-fetch')
  : globalThis.fetch

const traces = {}
const testOfPath = {}

function note (id, entry) {
  if (!options.trace || id === undefined) return
  (traces[id] ||= []).push(entry)
}

function limit () {
  return isPackage ? { timeout: options.timeout } : { signal: AbortSignal.timeout(options.timeout) }
}

async function seen (response) {
  return {
    status: response.status,
    headers: [...response.headers],
    body: await response.clone().text().catch(error => `(${error.message})`)
  }
}

async function tracingFetch (url, init = {}) {
  const uuid = new URL(url).pathname.split('/')[2]
  const isTest = url.startsWith(`${options.base}/test/`)
  const id = isTest
    ? Object.fromEntries(init.headers)['Test-ID']
    : testOfPath[uuid]
  if (isTest) testOfPath[uuid] = id
  const request = { method: init.method || 'GET', url, headers: init.headers || [] }
  try {
    const response = await fetch(url, { ...init, ...limit() })
    if (options.trace && isTest) note(id, { request, response: await seen(response) })
    if (options.trace && url.startsWith(`${options.base}/state/`)) {
      note(id, { origin: await response.clone().text() })
    }
    return response
  } catch (error) {
    note(id, { request, error: error.message })
    throw error
  }
}

// the suite asks for the origin's view only where all answers were right
async function askOrigin () {
  for (const [uuid, id] of Object.entries(testOfPath)) {
    if (!traces[id]?.some(entry => 'origin' in entry)) {
      await tracingFetch(`${options.base}/state/${uuid}`).catch(() => {})
    }
  }
}

function describe (suite, test) {
  return {
    id: test.id,
    name: test.name,
    suite: suite.id,
    kind: test.kind || 'required',
    depends_on: test.depends_on || [],
    browser_only: test.browser_only === true,
    cdn_only: test.cdn_only === true
  }
}

function chosen (suite) {
  const wanted = new Set(options.ids)
  return { ...suite, tests: suite.tests.filter(test => wanted.has(test.id)) }
}

const catalogue = suites.flatMap(suite => suite.tests.map(test => describe(suite, test)))
await runTests(
  options.ids ? suites.map(chosen) : suites,
  tracingFetch, false, options.base
)
if (options.trace) await askOrigin()
fs.writeFileSync(options.output, JSON.stringify({ catalogue, results: getResults(), traces }))
process.exit(0)
