'use strict';
/* A tracker of lab/SPEC.md for Node.js 18 or newer. It seeds its FILE by an ordinary peer. Read peer.js first.
     node tracker.js FILE [--port 8000] [--chunk-size 256K] [--expire S] [--no-seed] [--events FILE] [--quiet]
   Not here, on purpose: all other options, and the addresses at which others reach this machine [CL-2]. */
const fs = require('node:fs'), path = require('node:path'), p2p = require('./peer.js');
const { attempt, bytes, bytesOf, fail, joinAddress, now, number, plainIp, refusal, say, tell } = p2p;
const MAX_PEERS = 100_000, MAX_PEERS_PER_IP = 1000;
const peers = new Map(); // address -> { ip, port, end, field }; the first is the first whose lease ends
let file, name, lease; // of p2p.describe(); ms

function sweep() { // [AP-3]
  for (const [address, { end }] of peers) {
    if (end > now()) return;
    peers.delete(address);
    tell('expired', { peer: address });
  }
}
function renew(ip, port, event) { // whether there was room [JN-7]
  sweep();
  const address = joinAddress(ip, port), listed = peers.delete(address); // it is set again, as the last
  const sameIp = () => [...peers.values()].filter((peer) => peer.ip === ip).length;
  if (!listed && (peers.size >= MAX_PEERS || sameIp() >= MAX_PEERS_PER_IP)) return false;
  if (!listed) tell(event, { peer: address });
  return peers.set(address, { ip, port, end: now() + lease, field: bytes(1, address) });
}
function onPeerList(request, { socket: { remoteAddress, localAddress } }, ...more) { // as it can reach them [JN-6]
  sweep();
  const far = !p2p.isLoopback(plainIp(remoteAddress)), here = plainIp(localAddress);
  const seen = ({ ip, port, field }) => far && p2p.isLoopback(ip) ? bytes(1, joinAddress(here, port)) : field;
  return bytes(p2p.PEER_LIST, ...[...peers.values()].map(seen), ...more);
}
function enlist(request, { socket }, event, answer) { // `answer`, or a refusal
  const to = p2p.parseAddress(`${bytesOf(request, 1)}`), id = bytesOf(request, 8);
  if (!to) return refusal(p2p.BAD_ADDRESS, 'expected ip:port or [ip]:port with a port from 1 to 65535'); // [JN-4]
  if (id.length && !id.equals(file.id)) return refusal(p2p.OTHER_FILE, 'expected another content id'); // [AP-6]
  const room = renew(plainIp(socket.remoteAddress), to.port, event); // the announced IP does not count [JN-3]
  return room ? answer() : refusal(p2p.FULL, 'expected room for another peer, there is none');
}
function onJoin(request, connection) { // [JN-1, JN-2]
  const described = [bytes(1, name), number(2, file.size), number(3, file.chunkSize), bytes(4, file.digests)];
  const more = [bytes(8, ...described), number(9, lease)];
  return enlist(request, connection, 'joined', () => onPeerList(request, connection, ...more));
}
const onActiveProof = (request, connection) => enlist(request, connection, 'listed', () => bytes(p2p.OK));
async function describe(fd, size, chunkSize) {
  while (size / chunkSize > p2p.MAX_CHUNKS) chunkSize *= 2; // [FD-2]
  const digests = [], chunk = Buffer.alloc(chunkSize);
  for (let at = 0; at < size; at += chunkSize) {
    const count = fs.readSync(fd, chunk, 0, Math.min(chunkSize, size - at), at);
    digests.push(p2p.sha256(chunk.subarray(0, count)));
    await p2p.breath(); // so that signals have their turn
  }
  return p2p.describe(size, chunkSize, Buffer.concat(digests));
}
async function main() {
  const types = { 'port': 'string', 'chunk-size': 'string', 'expire': 'string', 'no-seed': 'boolean' };
  const [options, source] = p2p.commandLine(1, types);
  const [, digits, unit] = /^(\d+)([KM]?)$/.exec(options['chunk-size'] ?? '256K') ?? [];
  const chunkSize = digits * { '': 1, K: 2 ** 10, M: 2 ** 20 }[unit];
  if (!(chunkSize >= 1 && chunkSize <= p2p.MAX_CHUNK_SIZE)) fail(2, '--chunk-size: expected 1 to 16M, such as 256K');
  lease = Math.floor(1000 * (options.expire ?? 10));
  if (!(lease >= 1 && lease < 2 ** 32)) fail(2, '--expire: expected a number of seconds, from 0.001 to 4,000,000');
  const stat = attempt(8, () => fs.statSync(source)), fits = stat.size <= p2p.MAX_CHUNKS * p2p.MAX_CHUNK_SIZE;
  if (!stat.isFile() || !fits) fail(8, `expected a regular file of at most 256 GiB, got ${source}`);
  file = await describe(attempt(8, () => fs.openSync(source, 'r')), stat.size, chunkSize);
  name = path.basename(source);
  const handlers = { [p2p.JOIN]: onJoin, [p2p.ACTIVE_PROOF]: onActiveProof, [p2p.PEER_LIST]: onPeerList };
  const port = await p2p.listen(handlers, options.port ?? 8000);
  tell('start', { port, wall: Date.now() / 1000 });
  setInterval(sweep, Math.min(1000, lease / 4)).unref(); // answers do without it; the events are in time by it
  say(`content id ${file.id.toString('hex')}, join with\n    node peer.js HOST:${port} OUT`);
  say(`listening on port ${port}`);
  if (!options['no-seed']) await p2p.run({ host: '127.0.0.1', port }, source, { seeder: true });
}
main();
