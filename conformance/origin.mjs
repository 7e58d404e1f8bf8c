// Start the suite's origin, on the loopback interface only.
// usage: node origin.mjs DIRECTORY_OF_SERVER   (port and the like: environment)
import net from 'node:net'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const listen = net.Server.prototype.listen
net.Server.prototype.listen = function (port, ...rest) {
  return listen.call(this, port, '127.0.0.1', ...rest)
}

await import(pathToFileURL(path.join(process.argv[2], 'server/server.mjs')))
