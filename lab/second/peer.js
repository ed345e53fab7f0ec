#!/usr/bin/env node
'use strict';
/* A peer of lab/SPEC.md for Node.js 18 or newer: its standard library only, protobuf by hand, written from SPEC.md alone.
   Read from the top: messages, connections, command line, file, peer; then tracker.js. There is one thread: between two
   `await` nothing else runs, so nothing needs a lock. [FC-1] and the like are clauses of SPEC.md. */
const { createHash } = require('node:crypto');
const fs = require('node:fs'), net = require('node:net'), os = require('node:os'), path = require('node:path');
const { setTimeout: sleep, setImmediate: breath } = require('node:timers/promises');
const { parseArgs } = require('node:util');

const MAX_CHUNKS = 16384, MAX_CHUNK_SIZE = 16 << 20, MAX_REQUEST = 65536, MAX_CONNECTIONS = 512, MAX_NEIGHBORS = 50, MAX_CONTACTS = 1000;
const MAX_ANSWER = 8 << 20; // bytes: 100,000 addresses and 16,384 digests; the answer with a chunk has a limit of its own
const FRAME_MS = 10_000, IDLE_MS = 60_000, CONNECT_MS = 5000, TRACKER_MS = 30_000, LOST_MS = 60_000, PROGRESS_MS = 30_000;
const POLL_MS = 250, LATE_MS = 1000; // between looks at a neighbor with nothing new; an exchange this long is late [SW-5]
const PIECE = 16 << 10; // bytes sent at once: at 4 KiB/s, the slowest that is borne, well within FRAME_MS
const JOIN = 1, ACTIVE_PROOF = 2, PEER_LIST = 3, CHUNKS_QUERY = 4, FETCH_CHUNK = 5, OK = 1, BAD = 2, CHUNK = 5; // fields of the two messages
const CODE = { NO_TYPE: 1, WRONG_ROLE: 2, BAD_ADDRESS: 3, NO_SUCH_CHUNK: 4, NOT_HELD: 5, BUSY: 6, FULL: 7, OTHER_FILE: 8 };

// Messages. Encoded ones are Buffers, put together from fields; a field that has its default value is not sent.
class ProtocolError extends Error {} // a fault of the other side or of the network: it ends a connection, never the program
const isBug = (error) => !(error instanceof ProtocolError) && !error.code; // errors of the system have a code
const varint = (n) => Buffer.from(n < 128 ? [n] : [128 + n % 128, ...varint(Math.floor(n / 128))]); // no shifts: they are of 32 bits
const number = (field, value) => value ? Buffer.concat([varint(8 * field), varint(value)]) : Buffer.alloc(0);
const join = (...parts) => Buffer.concat(parts.flat(Infinity).map((part) => typeof part === 'string' ? Buffer.from(part) : part));
const bytes = (field, ...parts) => join(varint(8 * field + 2), varint(join(parts).length), parts.flat()); // text, message, packed list
const refusal = (code, reason) => bytes(BAD, number(8, code), bytes(9, reason));
class Message {
  constructor(body) {
    this.fields = []; // [number, value]: a number for wire type 0, a Buffer for 2; others are skipped, no field here has them
    for (let at = 0, tag, value; at < body.length;) {
      [tag, at] = Message.varint(body, at);
      const field = Math.floor(tag / 8), wire = tag % 8;
      if (wire === 0 || wire === 2) [value, at] = Message.varint(body, at);
      const length = { 0: 0, 1: 8, 2: value, 5: 4 }[wire]; // 3 and 4, groups, are not of proto3
      if (!field || !(at + length <= body.length)) throw new ProtocolError(`expected a field, got tag ${tag} or too few bytes`);
      if (wire === 0 || wire === 2) this.fields.push([field, wire ? body.subarray(at, at + length) : value]);
      at += length;
    }
  }
  static varint(body, at) { // [value, where it ends]; above 2^53 not exact, but seen to be too large
    for (let value = 0, unit = 1; unit < 2 ** 70 && at < body.length; unit *= 128) {
      value += body[at] % 128 * unit;
      if (body[at++] < 128) return [value, at];
    }
    throw new ProtocolError('expected a number, got one without end');
  }
  all(field, type) { return this.fields.filter(([no, value]) => no === field && typeof value === type).map(([, value]) => value); }
  number(field) { return this.all(field, 'number').at(-1) ?? 0; }
  bytes(field) { return this.all(field, 'object').at(-1); } // undefined if it is absent
  message(field) { return this.bytes(field) && new Message(this.bytes(field)); }
  numbers(field) { // one by one, or packed
    const list = this.all(field, 'number'), packed = join(this.all(field, 'object'));
    for (let at = 0, value; at < packed.length; list.push(value)) [value, at] = Message.varint(packed, at);
    return list;
  }
  get type() { return this.fields.findLast(([no, value]) => no <= 5 && typeof value === 'object')?.[0]; } // the last one counts
}

// Connections. What takes too long has its socket destroyed, and whoever awaits something of it gets an error.
const now = () => performance.now(); // ms, monotonic [CL-17]
const timeFor = (count) => FRAME_MS + count / 4096 * 1000; // [FC-11]
const uint64 = (value) => { const eight = Buffer.alloc(8); eight.writeBigUInt64BE(BigInt(value)); return eight; };
const pacer = { rate: Infinity, next: 0 }; // bytes per second of all uploads together; when the next piece may go
async function pace(count) {
  const start = pacer.next > now() - 100 ? pacer.next : now(); // what a timer is late is made up for, up to 100 ms
  pacer.next = start + 1000 * count / pacer.rate;
  if (start - now() > 1) await sleep(start - now());
}
class Connection {
  constructor(socket) {
    Object.assign(this, { socket, wake: () => {} });
    for (const event of ['readable', 'end', 'error', 'close']) socket.on(event, () => this.wake());
  }
  close(why) { this.socket.destroy(new ProtocolError(why)); }
  async within(ms, promise) {
    const timer = setTimeout(() => this.close(`not done within ${ms / 1000} s`), ms);
    try { return await promise; } finally { clearTimeout(timer); }
  }
  async receive(count) {
    for (;;) {
      const { socket } = this, got = count ? socket.read(count) : Buffer.alloc(0); // null: not all is there yet; fewer: the end
      if (got?.length === count) return got;
      if (got || socket.readableEnded || socket.destroyed) throw socket.errored ?? new ProtocolError(`expected ${count} bytes, got the end`);
      await new Promise((resolve) => { this.wake = resolve; });
    }
  }
  async frame(limit, idle, whole) { // `whole` runs from the first byte [WF-9]
    const first = await this.within(idle, this.receive(1));
    return this.within(whole, this.receive(7).then((rest) => {
      const length = join(first, rest).readBigUInt64BE(); // 64 bits need a BigInt
      if (length > limit) throw new ProtocolError(`expected a frame of at most ${limit} bytes, got ${length}`);
      return this.receive(Number(length));
    }));
  }
  send(...parts) { // done when the system has taken the last byte
    return this.within(FRAME_MS, new Promise((yes, no) => { this.socket.write(join(parts), (error) => error ? no(error) : yes()); }));
  }
  async ask(request, limit = MAX_ANSWER) {
    await this.send(uint64(request.length), request);
    const answer = new Message(await this.frame(limit, FRAME_MS, timeFor(limit)));
    this.answered = true;
    return answer;
  }
  async sendChunk(chunk) { // in pieces, so that one who stops reading is noticed [FC-14]
    const head = varint(chunk.length), piece = Math.max(1, Math.min(PIECE, Math.floor(pacer.rate / 10)));
    await this.send(uint64(1 + head.length + chunk.length), Buffer.from([8 * CHUNK + 2]), head);
    for (let at = 0; at < chunk.length; at += piece) {
      await pace(Math.min(piece, chunk.length - at));
      await this.send(chunk.subarray(at, at + piece));
    }
  }
}
async function dial({ host, port }) {
  const connection = new Connection(net.connect({ host, port, noDelay: true })), { socket } = connection;
  await connection.within(CONNECT_MS, new Promise((yes, no) => { socket.once('connect', yes).once('error', no); }));
  socket.setTimeout(FRAME_MS, () => connection.close('silent for too long')); // also in the middle of an answer
  return connection;
}
async function ask(to, request) { // over a connection of its own; `request`: socket -> bytes
  const connection = await dial(to);
  try { return await connection.ask(request(connection.socket)); } finally { connection.socket.destroy(); }
}
/** Listens; resolves with the port. `handlers`: field -> (request, connection) -> response, or nothing if it was sent already. */
function listen(handlers, host, port) {
  const waiting = new Set(); // connections that wait for a request, the longest first
  let open = 0;
  const server = net.createServer({ allowHalfOpen: true, noDelay: true }, async (socket) => { // half open: all asked, still waiting
    const connection = new Connection(socket);
    if (++open > MAX_CONNECTIONS) (waiting.values().next().value ?? connection).close('another one needs room'); // [WF-13]
    try {
      for (;;) {
        waiting.add(connection);
        const request = new Message(await connection.frame(MAX_REQUEST, IDLE_MS, FRAME_MS)), { type } = request;
        waiting.delete(connection);
        const refused = type ? refusal(CODE.WRONG_ROLE, 'expected a request for this role') : refusal(CODE.NO_TYPE, 'expected a known type');
        const response = handlers[type] ? await handlers[type](request.message(type), connection) : refused;
        if (response) await connection.send(uint64(response.length), response);
      }
    } catch (error) { if (isBug(error)) console.error(error); }
    waiting.delete(connection);
    open--;
    socket.destroy();
  });
  return new Promise((resolve) => {
    server.on('error', ({ code }) => fail(9, code === 'EADDRINUSE' ? `port ${port} is taken: choose another with --port`
      : `expected an address of this machine, got ${host}: ${code}`));
    server.listen({ host, port }, () => resolve(server.address().port)); // no host: all of IPv4 and IPv6
  });
}

// The command line, addresses, and what is printed.
const program = { name: path.basename(require.main.filename), quiet: false, events: null };
const printable = (text) => `${text}`.replace(/\p{C}|\p{Zl}|\p{Zp}/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`); // [FD-5]
const fail = (code, message) => { process.stderr.write(`${program.name}: ${printable(message)}\n`); process.exit(code); };
const clear = process.stdout.isTTY ? '\r\x1b[K' : ''; // what is said replaces the line of progress
const say = (line, end = '\n') => { if (!program.quiet) process.stdout.write(clear + line + end); };
const stamp = (event) => `${JSON.stringify({ t: Number(process.hrtime.bigint()) / 1e9, ...event })}\n`; // s, monotonic [CL-15]
const log = (event, more) => { if (program.events !== null) fs.writeSync(program.events, stamp({ event, ...more })); };
function amount(option, text, least, most) { // of bytes, or of seconds
  const [, digits, unit = ''] = /^(\d+(?:\.\d+)?)([KMG]?)$/i.exec(text) ?? [], value = digits * 1024 ** ' KMG'.indexOf(unit.toUpperCase() || ' ');
  return value >= least && value <= most ? value : fail(2, `--${option}: expected a number from ${least} to ${most}, got ${text}`);
}
const machine = () => Object.values(os.networkInterfaces()).flat().map(({ address }) => address); // its addresses
function isOwn(ip) { // of this machine, however it is spelled
  const own = new net.BlockList(), family = (one) => net.isIPv6(one) ? 'ipv6' : 'ipv4';
  for (const one of ['0.0.0.0', '::', '::1', ...machine()]) own.addAddress(one, family(one));
  own.addSubnet('127.0.0.0', 8);
  return own.check(ip, family(ip));
}
const joinAddress = (host, port) => net.isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;
const plainIp = (ip = '') => ip.replace(/^::ffff:(?=\d+\.)/, ''); // IPv4, as a socket for both families tells it
function parseAddress(text, names = false) { // "ip:port" or "[ip]:port", if `names` also "name:port"; undefined if it is none
  const [, v6, other = '', port] = /^(?:\[([^\]]+)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(text) ?? [];
  const good = v6 ? net.isIPv6(v6) : net.isIPv4(other) || names && other.split('.').every((label) => label && label.length < 64);
  return good && port >= 1 && port <= 65535 ? { host: v6 ?? other, port: Number(port) } : undefined;
}
/** [options, ...operands]. The usage says which there are. What both programs do with their options is done here. */
function commandLine(usage) {
  const options = {}, operands = usage.split(' [')[0].split(' ').length - 1;
  for (const [, name, value] of usage.matchAll(/--([a-z-]+)( \w+)?/g)) options[name] = { type: value ? 'string' : 'boolean' };
  process.stdout.on('error', () => {}); // nobody reads it: no reason to end [CL-13]
  process.on('SIGINT', () => process.exit(130)).on('SIGTERM', () => process.exit(143));
  process.on('uncaughtException', (error) => { console.error(error); process.exit(70); }); // and rejections that nobody handles
  try {
    const { values, positionals } = parseArgs({ options, allowPositionals: true });
    if (values.help || values.version) { say(values.help ? usage : `${program.name} 1.0`); process.exit(0); }
    if (positionals.length !== operands) fail(2, `expected ${usage}; got ${positionals.length} operands`);
    if (values.port) values.port = Math.floor(amount('port', values.port, 0, 65535));
    if (values['upload-limit']) pacer.rate = amount('upload-limit', values['upload-limit'], 1, 2 ** 50);
    if (values.events) program.events = fs.openSync(values.events, 'a');
    program.quiet = values.quiet;
    return [values, ...positionals];
  } catch (error) { return fail(2, error.message); }
}

// The file: what it must be, and its place.
const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest();
class Description {
  constructor(name, size, chunkSize, digests) {
    Object.assign(this, { name, size, chunkSize, digests, count: Math.ceil(size / chunkSize) });
    this.agrees = chunkSize > 0 && chunkSize <= MAX_CHUNK_SIZE && this.count <= MAX_CHUNKS && digests.length === 32 * this.count;
    this.id = this.agrees && sha256(uint64(size), uint64(chunkSize), digests); // [FD-3, FD-4]
  }
  indexOf(id) { return id < this.size && id % this.chunkSize === 0 ? id / this.chunkSize : undefined; }
  lengthOf(index) { return Math.min(this.chunkSize, this.size - index * this.chunkSize); }
  isRight(index, chunk) { return chunk.length === this.lengthOf(index) && sha256(chunk).equals(this.digests.subarray(32 * index, 32 * index + 32)); }
  read(fd, index) { // undefined if the bytes are not, or no longer, those of the digest [FC-13]
    const chunk = Buffer.alloc(this.lengthOf(index));
    fs.readSync(fd, chunk, 0, chunk.length, index * this.chunkSize);
    return this.isRight(index, chunk) ? chunk : undefined;
  }
  async rightOnes(fd) { // the indexes of the chunks that a file has
    const right = [], { size } = fs.fstatSync(fd);
    for (let index = 0; index < this.count && index * this.chunkSize < size; index++) {
      if (this.read(fd, index)) right.push(index);
      await breath(); // so that requests, proofs and signals have their turn
    }
    return right;
  }
}
const look = (file) => fs.lstatSync(file, { throwIfNoEntry: false });
function attempt(code, action) { // what the file system refuses ends the program
  try { return action(); } catch (error) { if (isBug(error)) throw error; return fail(code, error.message); }
}
/** Before joining: OUT can be made, is no link or folder, and nobody else is at it [CL-5, CL-6, CL-7]. */
async function reserve(out, part, force) {
  const folder = attempt(5, () => fs.realpathSync(path.dirname(out))), name = sha256(folder, '/', path.basename(out)).toString('hex', 0, 16);
  const place = path.join(os.tmpdir(), `p2p-${name}`); // Node has no flock; who listens at a socket is alive
  await new Promise((resolve) => {
    const lock = net.createServer((socket) => socket.destroy()).unref().listen(place, resolve);
    lock.on('error', () => net.connect(place, () => fail(5, `${out} is used by another process: wait for its end, or choose another OUT`))
      .on('error', () => { fs.rmSync(place, { force: true }); lock.listen(place, resolve); }));
  });
  process.on('exit', () => fs.rmSync(place, { force: true }));
  attempt(5, () => {
    const there = look(out), begun = look(part);
    if (there && !there.isFile() && !(force && there.isSymbolicLink())) fail(5, `expected a regular file or nothing at ${out}`);
    if (begun && !begun.isFile()) fail(5, `expected a regular file or nothing at ${part}`);
    fs.closeSync(fs.openSync(part, 'a'));
    if (!begun) fs.unlinkSync(part); // it was made to see that it can be
  });
}

// The peer: what it answers; then what it does with the tracker, with a neighbor, and with the file.
class Peer {
  constructor(tracker, out, force) {
    Object.assign(this, { tracker, out, part: `${out}.part`, force, held: [], missing: new Set(), underWay: new Map(), slots: 2, queue: [] });
    Object.assign(this, { contacts: new Map(), neighbors: new Set(), holders: [], useful: now(), received: 0 });
  }
  async listen(host, port) {
    const [onQuery, onFetch] = [this.onChunksQuery, this.onFetchChunk].map((method) => method.bind(this));
    this.port = await listen({ [CHUNKS_QUERY]: onQuery, [FETCH_CHUNK]: onFetch }, host, port);
  }
  onChunksQuery(request) {
    const news = this.held.slice(request.number(8)).map((index) => varint(index * this.file.chunkSize));
    return bytes(CHUNKS_QUERY, news.length ? bytes(1, news) : '');
  }
  async onFetchChunk(request, connection) {
    const id = request.number(1), index = this.file?.indexOf(id), { remoteAddress, remotePort } = connection.socket;
    if (this.file && index === undefined) return refusal(CODE.NO_SUCH_CHUNK, `expected the offset of a chunk, got ${id}`);
    if (!this.file || this.missing.has(index)) return refusal(CODE.NOT_HELD, `chunk ${id} is not held`);
    if (!this.slots && request.number(8)) return refusal(CODE.BUSY, 'every upload slot is taken');
    if (this.slots) this.slots--; else await new Promise((turn) => { this.queue.push(turn); });
    try {
      const chunk = this.file.read(this.fd, index);
      if (!chunk) return refusal(CODE.NOT_HELD, `chunk ${id} was changed on the disk`);
      await connection.within(timeFor(chunk.length), connection.sendChunk(chunk));
      return log('sent', { chunk: id, bytes: chunk.length, to: joinAddress(plainIp(remoteAddress), remotePort) });
    } finally { if (this.queue.length) this.queue.shift()(); else this.slots++; } // the slot goes to who has waited longest
  }

  announce(type) { // the IP is for trackers that believe it
    const address = (socket) => bytes(1, joinAddress(plainIp(socket.localAddress), this.port));
    return ask(this.tracker, (socket) => bytes(type, address(socket), this.file ? bytes(8, this.file.id) : ''));
  }
  async join() { // the tracker's list
    const at = joinAddress(this.tracker.host, this.tracker.port);
    for (let pause = 100, began = now(); ; pause = Math.min(2 * pause, 5000)) { // [CL-10]
      try {
        const list = (await this.announce(JOIN)).message(PEER_LIST);
        if (!list) throw new ProtocolError('it refused');
        setInterval(() => this.prove(), Math.min(60_000, Math.max(50, (list.number(9) || 10_000) / 4))); // [AP-4]
        log('joined', { tracker: at });
        return list;
      } catch (error) {
        if (isBug(error)) throw error;
        if (now() - began + pause > TRACKER_MS) fail(3, `no tracker at ${at}: ${error.message || error.code}`);
        if (pause === 100) say(`no tracker at ${at} yet, trying again: ${printable(error.message || error.code)}`);
        await sleep(pause);
      }
    }
  }
  async prove() {
    const answer = await this.announce(ACTIVE_PROOF).catch(() => null); // the next one may succeed [AP-7]
    if (answer?.message(BAD)?.number(8) === CODE.OTHER_FILE) fail(4, 'expected the tracker to have the same file still, it has another file');
  }

  meet(addresses) { // dials whom it may, of those that it knows and these [PL-3, PL-4, SW-6]
    for (const address of addresses.sort(() => Math.random() - 0.5)) {
      const to = parseAddress(address);
      if (!to || this.contacts.size >= MAX_CONTACTS || this.contacts.has(address) || to.port === this.port && isOwn(to.host)) continue;
      this.contacts.set(address, { address, to, strikes: 0, pause: 0, retry: 0 });
    }
    for (const contact of this.contacts.values()) {
      if (this.neighbors.size < MAX_NEIGHBORS && contact.retry <= now() && !this.neighbors.has(contact)) this.befriend(contact);
    }
  }
  async fetchAll(addresses) {
    const timers = [setInterval(() => this.refresh(), 1000), setInterval(() => this.show(), clear ? 500 : PROGRESS_MS)];
    this.useful = now();
    this.meet(addresses);
    await new Promise((resolve) => { this.whole = resolve; });
    timers.forEach(clearInterval);
    for (const { link } of this.neighbors) link?.close('the file is complete');
  }
  show() { // [CL-18]
    const rate = (this.received - (this.shown?.received ?? 0)) / (now() - (this.shown?.at ?? this.useful)) * 1000 / 1024;
    const percent = (100 * this.held.length / this.file.count).toFixed(1).padStart(5), met = this.neighbors.size;
    say(`${percent} %  ${rate.toFixed(1)} KiB/s  ${met} neighbor${met === 1 ? '' : 's'}`, clear ? '' : '\n');
    this.shown = { received: this.received, at: now() };
  }
  async refresh() { // every second [PL-5, SW-8]
    const nowhere = [...this.missing].filter((index) => !this.holders[index]), waited = now() - this.useful;
    if (nowhere.length < this.missing.size) this.useful = now();
    const few = `${nowhere.length} of ${this.file.count} chunks (${nowhere.slice(0, 9).map((index) => index * this.file.chunkSize)})`;
    if (nowhere.length === this.missing.size && waited > LOST_MS) fail(7, `swarm lost: nobody has ${few}; what came is in ${this.part}`);
    if (nowhere.length === this.missing.size && waited > 2000 && waited < 3000) say(`waiting for a neighbor that has ${few}`);
    this.meet([]);
    const list = (await ask(this.tracker, () => bytes(PEER_LIST)).catch(() => null))?.message(PEER_LIST); // without it: those it knows [SW-4]
    if (list && this.missing.size) this.meet(list.all(1, 'object').map(String));
  }
  async befriend(contact) { // one request at a time, until nothing is missing
    Object.assign(contact, { has: new Set(), refused: new Set(), heard: -Infinity, link: null, single: false });
    this.neighbors.add(contact);
    let reason;
    while (this.missing.size && !reason) {
      try { await this.step(contact); } catch (error) {
        if (isBug(error)) throw error;
        if (contact.single || !contact.link?.answered || contact.retry === Infinity) reason = error.message || error.code;
        Object.assign(contact, { single: true, heard: -Infinity }); // it may close after each answer: a connection for each request [WF-4]
      }
    }
    if (reason) contact.pause = Math.min(60_000, 2 * contact.pause || 1000); // [SW-6]
    contact.retry = Math.max(contact.retry, now() + contact.pause);
    this.learn(contact, [], 0);
    contact.link?.close('no longer a neighbor');
    this.neighbors.delete(contact);
    if (contact.added) log('neighbor_dropped', { neighbor: contact.address, reason: reason ?? 'nothing is missing' });
    contact.added = false;
  }
  async askNeighbor(contact, request, limit) {
    if (contact.single) contact.link.close('one request each');
    if (contact.single || !contact.link) contact.link = await dial(contact.to);
    return contact.link.ask(request, limit);
  }
  learn(contact, ids, known) {
    if (!known) for (const index of contact.has) this.holders[index]--;
    if (!known) contact.has.clear();
    for (const index of ids.map((id) => this.file.indexOf(id))) {
      if (index === undefined || contact.has.has(index)) continue; // [CQ-5]
      contact.has.add(index);
      this.holders[index]++;
    }
  }
  async step(contact) {
    if (contact.has.size < this.file.count && now() - contact.heard >= POLL_MS) {
      const known = contact.link && !contact.single ? contact.has.size : 0; // on a new connection 0 [CQ-4]
      const list = (await this.askNeighbor(contact, bytes(CHUNKS_QUERY, number(8, known)))).message(CHUNKS_QUERY);
      if (!list) throw new ProtocolError('expected a list of chunks');
      this.learn(contact, list.numbers(1), known);
      if (!contact.added) log('neighbor_added', { neighbor: contact.address });
      Object.assign(contact, { heard: now(), added: true });
    }
    const index = this.choose(contact);
    if (index !== undefined) return this.fetch(contact, index);
    contact.refused.clear();
    return sleep(POLL_MS);
  }
  choose({ has, refused }) { // the rarest [SW-1]; if all are under way, one that is late [SW-5]; of equals any
    const open = [...this.missing].filter((index) => has.has(index) && !refused.has(index));
    const free = open.filter((index) => !this.underWay.has(index)), fewest = Math.min(...free.map((index) => this.holders[index]));
    const late = ({ since, count }) => count === 1 && now() - since > LATE_MS;
    const best = free.length ? free.filter((index) => this.holders[index] === fewest) : open.filter((index) => late(this.underWay.get(index)));
    return best[Math.floor(best.length * Math.random())];
  }
  async fetch(contact, index) {
    const exchange = this.underWay.get(index) ?? { since: now(), count: 0 };
    const request = bytes(FETCH_CHUNK, number(1, index * this.file.chunkSize), number(8, 1)); // busy_ok
    this.underWay.set(index, exchange);
    exchange.count++;
    const answer = await this.askNeighbor(contact, request, this.file.lengthOf(index) + 1024).finally(() => {
      if (--exchange.count === 0) this.underWay.delete(index);
    });
    const code = answer.message(BAD)?.number(8), chunk = answer.bytes(CHUNK);
    if (answer.type === BAD && code === CODE.BUSY) return sleep(120 + 280 * Math.random()); // [FC-7]
    if (answer.type === BAD && ++contact.strikes < 3) return contact.refused.add(index); // [FC-10]
    if (answer.type === BAD || answer.type === CHUNK && !this.file.isRight(index, chunk)) { // [FC-9]
      contact.retry = Infinity;
      say(`banned ${contact.address}: it ${answer.type === BAD ? 'refused three chunks that it had listed' : 'sent a wrong chunk'}`);
    }
    if (answer.type !== CHUNK || contact.retry === Infinity) throw new ProtocolError('expected the chunk');
    Object.assign(contact, { strikes: 0, pause: 0 });
    return this.keep(index, chunk, contact.address);
  }

  async open() { // what is there and right is kept [CL-4]
    const right = (fd) => this.file.rightOnes(fd);
    if (look(this.out)?.isFile()) {
      this.fd = attempt(5, () => fs.openSync(this.out, 'r'));
      const same = fs.fstatSync(this.fd).size === this.file.size, held = same ? await right(this.fd) : [];
      if (same && held.length === this.file.count) return held.forEach((index) => this.hold(index));
      if (!this.force) fail(5, `${this.out} is another file: move it away, or replace it with --force`);
    }
    const { O_RDWR, O_CREAT, O_NOFOLLOW } = fs.constants;
    this.fd = attempt(5, () => fs.openSync(this.part, O_RDWR | O_CREAT | O_NOFOLLOW, 0o666));
    this.written = fs.fstatSync(this.fd);
    for (const index of await right(this.fd)) this.hold(index);
    return attempt(6, () => fs.ftruncateSync(this.fd, this.file.size));
  }
  hold(index) { if (this.missing.delete(index)) this.held.push(index); }
  keep(index, chunk, of) {
    if (!this.missing.has(index)) return; // it came twice [FC-12]
    const id = index * this.file.chunkSize;
    for (let done = 0; done < chunk.length;) { // a write may be short
      done += attempt(6, () => fs.writeSync(this.fd, chunk, done, chunk.length - done, id + done));
    }
    this.hold(index);
    this.received += chunk.length;
    log('fetched', { chunk: id, bytes: chunk.length, of });
    if (!this.missing.size) this.whole();
  }
  finish() { // [CL-3]
    if (this.written) attempt(5, () => {
      fs.fsyncSync(this.fd);
      const there = look(this.part), { ino, dev } = this.written;
      if (there?.ino !== ino || there.dev !== dev) fail(5, `expected ${this.part} to be the file that was written: it is gone`);
      if (look(this.out) && !this.force) fail(5, `${this.out} came to exist meanwhile: what was fetched is in ${this.part}`);
      fs.renameSync(this.part, this.out);
    });
    log('complete', { bytes: this.file.size });
  }
}

async function main() {
  const [options, tracker, out] = commandLine('peer.js TRACKER:PORT OUT [--host H] [--port 0] [--leave | --seed-for S]'
    + ' [--upload-limit RATE] [--expect ID] [--force] [--quiet] [--events FILE] [--version] [--help]');
  const address = parseAddress(tracker, true) ?? fail(2, `expected TRACKER:PORT, such as example.org:8000 or [::1]:8000, got ${tracker}`);
  if (options.leave && options['seed-for']) fail(2, 'expected --leave or --seed-for, got both');
  const stay = options.leave ? 0 : options['seed-for'] && 1000 * amount('seed-for', options['seed-for'], 0, 2_000_000);
  const peer = new Peer(address, path.resolve(out), options.force);
  await reserve(peer.out, peer.part, peer.force);
  await peer.listen(options.host, options.port ?? 0);
  log('start', { port: peer.port });
  const list = await peer.join(), told = list.message(8);
  const file = new Description(told?.bytes(1) ?? '', told?.number(2), told?.number(3), told?.bytes(4) ?? '');
  if (!file.agrees) fail(4, 'expected a description of the file whose numbers agree, the tracker sent none');
  const id = file.id.toString('hex');
  if ((options.expect ?? id).toLowerCase() !== id) fail(4, `expected the content ${options.expect}, the tracker has ${id}`);
  say(`joined ${printable(tracker)}: ${printable(file.name)}, ${file.size} bytes, content id ${id}`);
  Object.assign(peer, { file, missing: new Set(Array(file.count).keys()), holders: Array(file.count).fill(0) });
  await peer.open();
  if (peer.missing.size) await peer.fetchAll(list.all(1, 'object').map(String));
  peer.finish();
  say(`complete: ${file.size} bytes, ${peer.received} received; ${stay === undefined ? 'seeding until Ctrl-C' : 'leaving'}`);
  if (stay !== undefined) setTimeout(() => process.exit(0), stay);
}

module.exports = { ACTIVE_PROOF, CODE, JOIN, MAX_CHUNKS, MAX_CHUNK_SIZE, OK, PEER_LIST, Description, Peer, amount, attempt, bytes, commandLine, fail,
  joinAddress, listen, log, machine, now, number, parseAddress, plainIp, printable, refusal, say, sha256 };
if (require.main === module) main();
