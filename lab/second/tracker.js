#!/usr/bin/env node
'use strict';
/* A tracker of lab/SPEC.md for Node.js 18 or newer. It seeds its FILE by an ordinary peer. Read peer.js first. */
const fs = require('node:fs'), path = require('node:path');
const { setImmediate: breath } = require('node:timers/promises');
const { ACTIVE_PROOF, CODE, JOIN, MAX_CHUNKS, MAX_CHUNK_SIZE, OK, PEER_LIST, Description, Peer, amount, attempt, bytes, commandLine, fail,
  joinAddress, listen, log, machine, now, number, parseAddress, plainIp, printable, refusal, say, sha256 } = require('./peer.js');

const MAX_PEERS = 100_000, MAX_PEERS_PER_IP = 1000;
const isLoopback = (ip) => ip === '::1' || ip.startsWith('127.');

class Swarm {
  constructor(lease) { Object.assign(this, { lease, peers: new Map(), perIp: new Map() }); } // address -> { ip, port, end }, first to end first
  count(ip, change) { this.perIp.set(ip, (this.perIp.get(ip) ?? 0) + change); }
  sweep() { // [AP-3]
    for (const [address, { ip, end }] of this.peers) {
      if (end > now()) return;
      this.peers.delete(address);
      this.count(ip, -1);
      log('expired', { peer: address });
    }
  }
  renew(ip, port, event) { // whether there was room [JN-7]
    this.sweep();
    const address = joinAddress(ip, port), listed = this.peers.delete(address); // to the end of the Map
    if (!listed && (this.peers.size >= MAX_PEERS || this.perIp.get(ip) >= MAX_PEERS_PER_IP)) return false;
    if (!listed) this.count(ip, 1);
    if (!listed) log(event, { peer: address });
    return this.peers.set(address, { ip, port, end: now() + this.lease });
  }
  addresses(socket) { // as this asker can reach them [JN-6]
    this.sweep();
    const asker = plainIp(socket.remoteAddress), here = plainIp(socket.localAddress);
    const seen = (ip) => isLoopback(ip) && !isLoopback(asker) ? here : ip;
    return [...new Set([...this.peers.values()].map(({ ip, port }) => joinAddress(seen(ip), port)))].map((address) => bytes(1, address));
  }
}

async function describe(fd, name, size, chunkSize) {
  while (size / chunkSize > MAX_CHUNKS) chunkSize *= 2; // [FD-2]
  const digests = [], chunk = Buffer.alloc(chunkSize);
  for (let at = 0; at < size; at += chunkSize) {
    digests.push(sha256(chunk.subarray(0, fs.readSync(fd, chunk, 0, Math.min(chunkSize, size - at), at))));
    await breath(); // so that signals have their turn
  }
  return new Description(name, size, chunkSize, Buffer.concat(digests));
}

async function main() {
  const [options, name] = commandLine('tracker.js FILE [--host H] [--port 8000] [--chunk-size 256K] [--expire S] [--upload-limit RATE] [--no-seed]'
    + ' [--quiet] [--events FILE] [--version] [--help]');
  const chunkSize = Math.floor(amount('chunk-size', options['chunk-size'] ?? '256K', 1, MAX_CHUNK_SIZE));
  const lease = Math.floor(1000 * amount('expire', options.expire ?? '10', 0.001, 4_000_000)); // ms; the answer has 32 bits for it
  const stat = attempt(8, () => fs.statSync(name));
  if (!stat.isFile() || stat.size > MAX_CHUNKS * MAX_CHUNK_SIZE) fail(8, `expected a regular file of at most 256 GiB, got ${name}`);
  const fd = attempt(8, () => fs.openSync(name, 'r')), file = await describe(fd, path.basename(name), stat.size, chunkSize);
  const swarm = new Swarm(lease);
  const description = bytes(8, bytes(1, file.name), number(2, file.size), number(3, file.chunkSize), bytes(4, file.digests));
  const enlist = (event, answer) => (request, { socket }) => {
    const to = parseAddress(`${request.bytes(1) ?? ''}`), id = request.bytes(8);
    if (!to) return refusal(CODE.BAD_ADDRESS, 'expected ip:port or [ip]:port with a port from 1 to 65535'); // [JN-4]
    if (id?.length && !id.equals(file.id)) return refusal(CODE.OTHER_FILE, 'expected the content id of the file of this tracker');
    const room = swarm.renew(plainIp(socket.remoteAddress), to.port, event); // the announced IP does not count [JN-3]
    return room ? answer(socket) : refusal(CODE.FULL, 'expected room for another peer, there is none');
  };
  const port = await listen({
    [JOIN]: enlist('joined', (socket) => bytes(PEER_LIST, ...swarm.addresses(socket), description, number(9, lease))),
    [ACTIVE_PROOF]: enlist('listed', () => bytes(OK)),
    [PEER_LIST]: (request, { socket }) => bytes(PEER_LIST, ...swarm.addresses(socket)),
  }, options.host, options.port ?? 8000);
  setInterval(() => swarm.sweep(), 100);
  log('start', { port });
  say(`${printable(name)}: ${file.size} bytes in ${file.count} chunks, content id ${file.id.toString('hex')}\nothers join with`);
  const here = machine().filter((ip) => !ip.startsWith('fe80'));
  const word = /^[\w.,+@%][\w.,+@%=:-]*$/.test(file.name) ? file.name : `'./${printable(file.name).replaceAll("'", "'\\''")}'`; // for a shell
  const anywhere = [undefined, '0.0.0.0', '::'].includes(options.host), program = path.relative('.', path.join(__dirname, 'peer.js'));
  for (const host of anywhere ? here : [options.host]) say(`    node ${program} ${joinAddress(host, port)} ${word}`);
  say(`listening on port ${port}`);
  if (options['no-seed']) return;
  const seeder = Object.assign(new Peer({ host: anywhere ? '127.0.0.1' : options.host, port }), { file, fd, held: [...Array(file.count).keys()] });
  await seeder.listen(options.host, 0);
  await seeder.join();
  log('complete', { bytes: file.size });
}
main();
