'use strict';
/* A peer of lab/SPEC.md for Node.js 18 or newer: its standard library only, protobuf by hand, written from SPEC.md.
     node peer.js TRACKER:PORT OUT [--port P] [--leave] [--expect ID] [--force] [--events FILE] [--quiet]
   Read from the top: messages, connections, file, peer; then tracker.js. There is one thread: between two `await`
   nothing else runs, so nothing needs a lock. [FC-1] and the like are clauses of SPEC.md.
   Not here, on purpose: all other options [CL-8, CL-14]; progress, help, and the file's name [CL-18, FD-5]; a
   check of OUT before Join [CL-6]; a stdout that nobody reads [CL-13]; requests ahead [FC-15]; `instead`, and
   `retry_ms` as a server [FC-7]. */
const events = require('node:events'), fs = require('node:fs'), net = require('node:net'), os = require('node:os');
const { setTimeout: sleep, setImmediate: breath } = require('node:timers/promises');
const { createHash } = require('node:crypto'), { parseArgs } = require('node:util'), { resolve } = require('node:path');

const MAX_CHUNKS = 16384, MAX_CONNECTIONS = 512, MAX_NEIGHBORS = 50, MAX_CONTACTS = 1000; // contacts: neighbors to be
const MAX_CHUNK_SIZE = 16 << 20, MAX_REQUEST = 65536, MAX_ANSWER = 8 << 20; // bytes; the last: 100,000 addresses
const FRAME_MS = 10_000, IDLE_MS = 60_000, LOST_MS = 60_000, NEWS_MS = 500, LATE_MS = 1000; // late: an exchange [SW-5]
const PIECE = 16 << 10; // bytes sent at once: at 4 KiB/s, the slowest that is borne, well within FRAME_MS

// Messages. Encoded ones are Buffers, put together from fields. A field that has its default value is not sent.
const JOIN = 1, ACTIVE_PROOF = 2, PEER_LIST = 3, CHUNKS_QUERY = 4, FETCH_CHUNK = 5; // fields of Request
const OK = 1, BAD = 2, CHUNK = 5; // fields of Response; the two lists have the same numbers there
const NO_TYPE = 1, WRONG_ROLE = 2, BAD_ADDRESS = 3, NO_SUCH_CHUNK = 4, NOT_HELD = 5, BUSY = 6, FULL = 7, OTHER_FILE = 8;
class ProtocolError extends Error {} // a fault of the other side: it ends a connection, not the program
// For catch: passes over what a network or a system does (its errors have a code); a bug goes on.
const expected = (error) => { if (!(error instanceof ProtocolError) && !error.code) throw error; };
const varint = (value) => Buffer.from(value < 128 ? [value] : [128 + value % 128, ...varint(Math.floor(value / 128))]);
const number = (field, value) => value ? Buffer.concat([varint(8 * field), varint(value)]) : Buffer.alloc(0);
function bytes(field, ...parts) { // text, bytes, a message, or a packed list of numbers
  const body = Buffer.concat(parts.map((part) => typeof part === 'string' ? Buffer.from(part) : part));
  return Buffer.concat([varint(8 * field + 2), varint(body.length), body]);
}
const refusal = (code, reason) => bytes(BAD, number(8, code), bytes(9, reason));
function readVarint(body, at) { // [value, where it ends]; no shifts, those are of 32 bits; not exact above 2^53
  for (let value = 0, unit = 1; unit < 2 ** 70 && at < body.length; unit *= 128) {
    value += body[at] % 128 * unit;
    if (body[at++] < 128) return [value, at];
  }
  throw new ProtocolError('expected a number, got one without end');
}
function decode(body) { // tag -> its values: numbers for wire type 0, Buffers for 2; and the `type` [WF-12]
  const message = {};
  for (let at = 0, tag, value; at < body.length;) {
    [tag, at] = readVarint(body, at);
    const field = Math.floor(tag / 8), wire = tag % 8;
    if (wire === 0 || wire === 2) [value, at] = readVarint(body, at);
    const length = { 0: 0, 1: 8, 2: value, 5: 4 }[wire]; // 3 and 4, groups, are not of proto3
    if (!field || !(at + length <= body.length)) throw new ProtocolError(`expected a field, got tag ${tag}`);
    if (wire === 2 && field <= 5) message.type = field; // the last one counts
    (message[tag] ??= []).push(wire === 2 ? body.subarray(at, at + length) : value);
    at += length;
  }
  return message;
}
const numberOf = (message, field) => message[8 * field]?.at(-1) ?? 0;
const bytesOf = (message, field) => message[8 * field + 2]?.at(-1) ?? Buffer.alloc(0);
const partOf = (message, field) => decode(bytesOf(message, field));
function numbersOf(message, field) { // of a list: one by one, or packed
  const list = message[8 * field] ?? [], packed = Buffer.concat(message[8 * field + 2] ?? []);
  for (let at = 0, value; at < packed.length; list.push(value)) [value, at] = readVarint(packed, at);
  return list;
}

// Connections. What takes too long has its socket destroyed, and whoever awaits something of it gets an error.
const now = () => performance.now(), timeFor = (count) => FRAME_MS + count / 4096 * 1000; // monotonic [CL-17, FC-11]
const uint64 = (value) => Buffer.from(value.toString(16).padStart(16, '0'), 'hex');
class Connection {
  constructor(socket) {
    Object.assign(this, { socket, listed: [], wake: () => {} }); // listed: the ids that have come over it [CQ-4]
    for (const event of ['readable', 'end', 'error', 'close']) socket.on(event, () => this.wake());
    socket.on('close', () => clearTimeout(this.timer)).on('timeout', () => this.close('silent for too long'));
  }
  close(why) { this.socket.destroy(new ProtocolError(why)); }
  limit(ms) { // replaces the limit before
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.close(`not done within ${ms / 1000} s`), ms);
  }
  async receive(count) {
    for (const { socket } = this; ; await new Promise((resolve) => { this.wake = resolve; })) {
      const got = count ? socket.read(count) : Buffer.alloc(0); // null: not all is there yet; fewer: the end
      if (got?.length === count) return got;
      if (got || socket.readableEnded || socket.destroyed) throw socket.errored ?? new ProtocolError('it was closed');
    }
  }
  async frame(most, idle, timeOf) { // bytes; ms until its first byte, and from there, for its length [WF-9]
    this.limit(idle);
    const first = await this.receive(1), began = now();
    this.limit(FRAME_MS);
    const length = Buffer.concat([first, await this.receive(7)]).readBigUInt64BE(); // 64 bits need a BigInt
    if (length > most) throw new ProtocolError(`expected a frame of at most ${most} bytes, got ${length}`);
    this.limit(began + timeOf(Number(length)) - now());
    return this.receive(Number(length)).finally(() => clearTimeout(this.timer));
  }
  async send(message) { // in pieces, so that one who stops reading is noticed [FC-14]
    const frame = Buffer.concat([uint64(message.length), message]), end = now() + timeFor(frame.length);
    for (let at = 0; at < frame.length; at += PIECE) {
      this.limit(Math.min(FRAME_MS, end - now()));
      await new Promise((yes, no) => { this.socket.write(frame.subarray(at, at + PIECE), (e) => e ? no(e) : yes()); });
    }
  }
}
/** Resolves with the answer to request(connection). `other`: { to: its address, connection: kept for the next one }. */
async function ask(other, request, limit = MAX_ANSWER) {
  const kept = other.connection, timeout = FRAME_MS; // of silence, also in the middle of an answer
  const connection = kept ?? new Connection(net.connect({ ...other.to, noDelay: true, timeout }));
  other.connection = undefined; // nobody else may use it meanwhile
  try {
    await connection.send(request(connection)); // which waits until it is connected
    const answer = decode(await connection.frame(limit, FRAME_MS, timeFor));
    other.connection = connection;
    return answer;
  } catch (error) {
    connection.socket.destroy();
    if (!kept || !(error.code || connection.socket.readableEnded)) throw error;
    return ask(other, request, limit); // over a new one: the other side did not keep it [WF-4]
  }
}
/** Resolves with the port. `handlers`: field -> (request, connection) -> response, or nothing if it was sent. */
function listen(handlers, port) {
  const waiting = new Set(); // connections that wait for a request, the longest first
  let open = 0;
  const server = net.createServer({ allowHalfOpen: true, noDelay: true }, async (socket) => { // half open: it has asked
    const connection = new Connection(socket);
    if (++open > MAX_CONNECTIONS) (waiting.values().next().value ?? connection).close('another needs room'); // [WF-13]
    try {
      for (;; waiting.delete(connection)) { // so that it comes to be the last
        waiting.add(connection);
        const request = decode(await connection.frame(MAX_REQUEST, IDLE_MS, () => FRAME_MS)), { type } = request;
        if (type === FETCH_CHUNK) waiting.delete(connection); // who waits for news may have to make room, too
        const refused = type ? refusal(WRONG_ROLE, 'expected another role') : refusal(NO_TYPE, 'expected a known type');
        const response = handlers[type] ? await handlers[type](partOf(request, type), connection) : refused;
        if (response) await connection.send(response);
      }
    } catch (error) { expected(error); }
    waiting.delete(connection);
    open--;
    socket.destroy();
  });
  server.on('error', ({ message }) => fail(9, `expected a port that is free: ${message}`));
  return new Promise((resolve) => { server.listen(port, () => resolve(server.address().port)); }); // IPv4 and IPv6
}

// Addresses, and how a program ends.
const plainIp = (ip = '') => ip.replace(/^::ffff:(?=\d+\.)/, ''); // IPv4, as a socket for both families tells it
const isLoopback = (ip) => ip === '::1' || ip.startsWith('127.');
const joinAddress = (host, port) => net.isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;
function parseAddress(text, names = false) { // "ip:port" or "[ip]:port", if `names` "name:port" too; else undefined
  const [, v6, other = '', port] = /^(?:\[([^\]]+)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(text) ?? [];
  const good = v6 ? net.isIPv6(v6) : names && other || net.isIPv4(other);
  return good && port >= 1 && port <= 65535 ? { host: plainIp(v6 ?? other), port: Number(port) } : undefined;
}
let quiet = false, log; // log: a descriptor, of --events
const say = (line) => { if (!quiet) console.log(line); }; // [CL-18]
function tell(event, fields) { // [CL-15]
  if (log !== undefined) fs.writeSync(log, `${JSON.stringify({ t: now() / 1000, event, ...fields })}\n`);
}
const fail = (code, message) => { console.error(message); process.exit(code); };
function attempt(code, action) { // what the system refuses ends the program
  try { return action(); } catch (error) { expected(error); return fail(code, error.message); }
}
/** [options, ...operands] of either program. `types`: option -> 'string' or 'boolean'. */
function commandLine(count, types) {
  const all = { ...types, events: 'string', quiet: 'boolean' };
  const options = Object.fromEntries(Object.entries(all).map(([name, type]) => [name, { type }]));
  process.on('SIGINT', () => process.exit(130)).on('SIGTERM', () => process.exit(143));
  process.on('uncaughtException', (error) => { console.error(error); process.exit(70); }); // and promises' errors
  const { values, positionals } = attempt(2, () => parseArgs({ options, allowPositionals: true }));
  if (positionals.length !== count) fail(2, `expected ${count} words beside options, got ${positionals.length}`);
  quiet = values.quiet;
  if (values.events) log = attempt(2, () => fs.openSync(values.events, 'a'));
  return [values, ...positionals];
}

// The file, and the state of the peer: there is one in a process.
let file, fd, tracker, ownPort, whole; // the file; its descriptor; see ask(); a port; what to do once complete
let useful = now(), slots = 6; // when a neighbor had what is wanted; upload slots that are free
const held = [], missing = new Set(), holders = []; // indexes of chunks; how many neighbors hold each
const news = new events.EventEmitter().setMaxListeners(0); // emits 'held' when a chunk has come to be held
const queue = [], contacts = new Map(), neighbors = new Set(), underWay = new Map(); // uploads that wait for a slot; …
const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest();
function describe(size, chunkSize, digests) { // undefined if they do not agree [FD-3, FD-4]
  const count = Math.ceil(size / chunkSize), small = chunkSize <= MAX_CHUNK_SIZE && count <= MAX_CHUNKS;
  if (!chunkSize || !small || digests.length !== 32 * count) return undefined;
  return { size, chunkSize, digests, count, id: sha256(uint64(size), uint64(chunkSize), digests) };
}
const idOf = (index) => index * file.chunkSize;
const indexOf = (id) => id < file.size && id % file.chunkSize === 0 ? id / file.chunkSize : undefined;
const lengthOf = (index) => Math.min(file.chunkSize, file.size - idOf(index));
const isRight = (index, chunk) => sha256(chunk).equals(file.digests.subarray(32 * index, 32 * index + 32)); // [FC-9]
function readChunk(index) { // undefined if the bytes are not, or no longer, those of the digest [FC-13]
  const chunk = Buffer.alloc(lengthOf(index));
  fs.readSync(fd, chunk, 0, chunk.length, idOf(index));
  return isRight(index, chunk) ? chunk : undefined;
}
const hold = (index) => missing.delete(index) && news.emit('held', held.push(index));

// What a peer answers.
async function onChunksQuery(request) {
  const known = numberOf(request, 8), wait = Math.min(numberOf(request, 9), 1000), signal = AbortSignal.timeout(wait);
  if (wait && held.length <= known) await events.once(news, 'held', { signal }).catch(expected); // [CQ-6]
  const ids = held.slice(known).map((index) => varint(idOf(index))); // [CQ-3]
  return bytes(CHUNKS_QUERY, ids.length ? bytes(1, ...ids) : '');
}
async function onFetchChunk(request, connection) {
  const id = numberOf(request, 1), index = file && indexOf(id);
  if (file && index === undefined) return refusal(NO_SUCH_CHUNK, `expected the offset of a chunk, got ${id}`);
  if (!file || missing.has(index)) return refusal(NOT_HELD, `chunk ${id} is not held`);
  if (!slots && numberOf(request, 8)) return refusal(BUSY, 'every upload slot is taken'); // [FC-6]
  if (slots) slots--; else await new Promise((turn) => { queue.push(turn); });
  try {
    const { remoteAddress, remotePort } = connection.socket, to = joinAddress(plainIp(remoteAddress), remotePort);
    const chunk = readChunk(index);
    await connection.send(chunk ? bytes(CHUNK, chunk) : refusal(NOT_HELD, `chunk ${id} was changed on the disk`));
    if (chunk) tell('sent', { chunk: id, bytes: chunk.length, to });
  } finally { if (queue.length) queue.shift()(); else slots++; } // to who has waited longest
}

// What it does with the tracker.
const announce = (type) => // of the address only the port counts [JN-3]
  ask(tracker, () => bytes(type, bytes(1, `0.0.0.0:${ownPort}`), file ? bytes(8, file.id) : ''));
async function prove() {
  const answer = await announce(ACTIVE_PROOF).catch(expected); // the next one may succeed [AP-7]
  if (answer && numberOf(partOf(answer, BAD), 8) === OTHER_FILE) fail(4, 'expected a tracker of the same file still');
}
async function join() { // the tracker's list
  for (let pause = 100; pause < 20_000; pause *= 2) { // for 25 s, and what the attempts take [CL-10]
    const answer = await announce(JOIN).catch(expected);
    if (answer?.type === PEER_LIST) return partOf(answer, PEER_LIST);
    await sleep(pause);
  }
  return fail(3, `no tracker at ${joinAddress(tracker.to.host, tracker.to.port)}`);
}

// What it does with its neighbors.
const ownIps = ['::', '0.0.0.0', ...Object.values(os.networkInterfaces()).flat().map(({ address }) => address)];
const isSelf = ({ host, port }) => port === ownPort && (isLoopback(host) || ownIps.includes(host));
function meet(list) { // calls whom it may, of those that it knows and a tracker's list [PL-3, PL-4, SW-6]
  for (const address of (list[8 * 1 + 2] ?? []).map(String).sort(() => Math.random() - 0.5)) {
    const to = parseAddress(address);
    if (!to || contacts.size >= MAX_CONTACTS || contacts.has(address) || isSelf(to)) continue;
    const never = { strikes: 0, pause: 0, retry: 0 }; // retry: not to be called before
    contacts.set(address, { to, name: address, has: new Set(), ...never });
  }
  const ready = [...contacts.values()].filter((contact) => contact.retry <= now() && !neighbors.has(contact));
  ready.slice(0, MAX_NEIGHBORS - neighbors.size).forEach(befriend);
}
async function refresh() { // every second [PL-5, SW-7, SW-8]
  if (!missing.size) return;
  const nowhere = [...missing].filter((index) => !holders[index]);
  if (nowhere.length < missing.size) useful = now();
  if (now() - useful > LOST_MS) fail(7, `nobody has ${nowhere.length} chunks: ${nowhere.slice(0, 9).map(idOf)}`);
  meet({});
  const answer = await ask(tracker, () => bytes(PEER_LIST)).catch(expected); // without it: those that it knows [SW-4]
  if (answer?.type === PEER_LIST && missing.size) meet(partOf(answer, PEER_LIST));
}
async function befriend(contact) { // one request at a time, until nothing is missing
  neighbors.add(contact);
  tell('neighbor_added', { neighbor: contact.name });
  let reason = '';
  try { while (missing.size) await step(contact); } catch (error) {
    expected(error);
    reason = error.message;
    contact.pause = Math.min(60_000, 2 * contact.pause || 1000); // [SW-6]
    contact.retry = Math.max(contact.retry, now() + contact.pause);
  }
  contact.connection?.socket.destroy();
  learn(contact, []);
  neighbors.delete(contact);
  tell('neighbor_dropped', { neighbor: contact.name, reason });
}
async function step(contact) { // its list is asked for each time: what is chosen depends on it
  const asked = now(), { size } = contact.has;
  const wait = choose(contact.has) === undefined ? NEWS_MS : 0; // not longer: what is under way may come to be late
  const answer = await ask(contact, ({ listed }) => bytes(CHUNKS_QUERY, number(8, listed.length), number(9, wait)));
  if (answer.type !== CHUNKS_QUERY) throw new ProtocolError('expected a list of chunks');
  const { connection } = contact, ids = numbersOf(partOf(answer, CHUNKS_QUERY), 1);
  learn(contact, connection.listed = [...connection.listed, ...ids].slice(0, MAX_CHUNKS));
  const index = choose(contact.has);
  if (index !== undefined) await fetchChunk(contact, index);
  else if (contact.has.size <= size) await sleep(Math.max(1, asked + NEWS_MS - now())); // it may not wait [CQ-6]
}
function learn(contact, ids) { // what a list on a new connection does not name, the neighbor has no longer [CQ-4]
  for (const index of contact.has) holders[index]--;
  contact.has = new Set(ids.map(indexOf).filter((index) => index !== undefined)); // [CQ-5]
  for (const index of contact.has) holders[index]++;
}
function choose(has) { // the rarest [SW-1]; if all are under way, one that is late [SW-5]; of equals any
  const open = [...missing].filter((index) => has.has(index)), free = open.filter((index) => !underWay.has(index));
  const fewest = Math.min(...free.map((index) => holders[index]));
  const late = open.filter((index) => underWay.get(index)?.count === 1 && now() - underWay.get(index).since > LATE_MS);
  const best = free.length ? free.filter((index) => holders[index] === fewest) : late;
  return best[Math.floor(best.length * Math.random())];
}
async function fetchChunk(contact, index) {
  const exchange = underWay.get(index) ?? { since: now(), count: 0 };
  underWay.set(index, exchange);
  exchange.count++;
  const request = bytes(FETCH_CHUNK, number(1, idOf(index)), number(8, 1)); // busy_ok
  const answer = await ask(contact, () => request, lengthOf(index) + 65_536)
    .finally(() => { if (--exchange.count === 0) underWay.delete(index); });
  const bad = partOf(answer, BAD), retry = numberOf(bad, 10) || 250, chunk = bytesOf(answer, CHUNK); // [FC-7]
  if (numberOf(bad, 8) === BUSY) return sleep(Math.min(1000, Math.max(75, retry)) * (0.7 + 0.6 * Math.random()));
  if (answer.type === CHUNK && isRight(index, chunk)) return keep(contact, index, chunk);
  if (answer.type !== BAD || ++contact.strikes === 3) contact.retry = Infinity; // banned [FC-9, FC-10]
  if (contact.retry === Infinity) throw new ProtocolError('expected a chunk that it had listed, got another answer');
}
function keep(contact, index, chunk) {
  Object.assign(contact, { strikes: 0, pause: 0 });
  if (!missing.has(index)) return; // it came twice [FC-12]
  const write = (done) => attempt(6, () => fs.writeSync(fd, chunk, done, chunk.length - done, idOf(index) + done));
  for (let done = 0; done < chunk.length;) done += write(done); // one may be short [CL-11]
  hold(index);
  tell('fetched', { chunk: idOf(index), bytes: chunk.length, of: contact.name });
  if (!missing.size) whole();
}

// What it does as a program. The tracker's seeder is one whose OUT is there.
async function claim(out) { // by a name that ends with the process; only Linux has such names [CL-7]
  const server = net.createServer().listen(process.platform === 'linux' ? `\0${resolve(out)}` : 0).unref();
  await events.once(server, 'listening').catch(() => fail(5, `${out}: another process is at work on it`));
}
async function run(to, out, { leave, expect, force, port = 0, seeder }) {
  tracker = { to };
  ownPort = await listen({ [CHUNKS_QUERY]: onChunksQuery, [FETCH_CHUNK]: onFetchChunk }, port);
  if (!seeder) tell('start', { port: ownPort, wall: Date.now() / 1000 });
  const list = await join(), told = partOf(list, 8), part = `${out}.part`;
  tell('joined', { listening: joinAddress(plainIp(tracker.connection?.socket.localAddress), ownPort) });
  setInterval(prove, Math.min(60_000, Math.max(50, (numberOf(list, 9) || 10_000) / 4))); // [AP-4]
  file = describe(numberOf(told, 2), numberOf(told, 3), bytesOf(told, 4)) ?? fail(4, 'expected a sound description');
  const id = file.id.toString('hex');
  if ((expect ?? id).toLowerCase() !== id) fail(4, `expected the content ${expect}, the tracker has ${id}`);
  for (let index = 0; index < file.count; index++) { missing.add(index); holders.push(0); }
  const there = fs.lstatSync(out, { throwIfNoEntry: false }), { O_RDONLY, O_RDWR, O_CREAT, O_NOFOLLOW } = fs.constants;
  if (there && !force && !there.isFile()) fail(5, `${out} is no regular file: move it away`); // [CL-5]
  if (there?.isFile()) fd = attempt(5, () => fs.openSync(out, O_RDONLY));
  const begun = !fd || force && (there.size !== file.size || ![...missing].every(readChunk)); // not what is there
  if (begun) fd = attempt(5, () => fs.openSync(part, O_RDWR | O_CREAT | O_NOFOLLOW, 0o666));
  const { size } = fs.fstatSync(fd);
  for (let index = 0; index < file.count && idOf(index) < size; index++) { // what is right is kept [CL-4]
    if (readChunk(index)) hold(index);
    await breath(); // so that requests, proofs and signals have their turn
  }
  if (begun) attempt(6, () => fs.ftruncateSync(fd, file.size));
  else if (missing.size || size !== file.size) fail(5, `${out} is another file: move it away`);
  whole = () => {
    if (begun) attempt(5, () => fs.renameSync(part, out)); // [CL-3]
    tell('complete', { bytes: file.size });
    say(`complete: ${file.size} bytes, ${leave ? 'leaving' : 'seeding until Ctrl-C'}`);
    if (leave) process.exit(0);
  };
  if (!missing.size) return whole();
  useful = now();
  setInterval(refresh, 1000);
  return meet(list);
}
module.exports = { ACTIVE_PROOF, BAD_ADDRESS, FULL, JOIN, MAX_CHUNKS, MAX_CHUNK_SIZE, OK, OTHER_FILE, PEER_LIST,
  attempt, breath, bytes, bytesOf, commandLine, describe, fail, isLoopback, joinAddress, listen, now, number,
  parseAddress, plainIp, refusal, run, say, sha256, tell };
if (require.main === module) {
  const [options, to, out] = commandLine(2, { port: 'string', leave: 'boolean', expect: 'string', force: 'boolean' });
  const where = parseAddress(to, true) ?? fail(2, `expected TRACKER:PORT, such as [::1]:8000, got ${to}`);
  claim(out).then(() => run(where, out, options));
}
