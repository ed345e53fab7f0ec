-- Wireshark's view of the protocol of lab/SPEC.md: every request and every answer, with the names of messages.proto.
--
--     tshark -X lua_script:lab/tools/p2p.lua -r lab/exchange.pcap -O p2p
--     wireshark -X lua_script:lab/tools/p2p.lua lab/exchange.pcap      filters: p2p.request == "Join", p2p.chunk_id == 0, ...
--
-- What passes at the ports of the preference p2p.ports (-o p2p.ports:8000-8010) is taken for ours; elsewhere
-- whatever begins like one of our frames is. Frames may be split over segments, and several may be in one. Where segments
-- overtook each other, Wireshark must be told to put them in order: -o tcp.reassemble_out_of_order:TRUE
--
-- Reading order: fields - numbers out of bytes - a message - a frame - which side asks - what is ours.

local p2p = Proto("p2p", "P2P file distribution")

local MAX_FRAME = 32 * 1024 * 1024  -- bytes; a length above it is taken for a mistake: the largest chunk has half of that
local VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  -- wire types


-- Fields.

local CODES = {[0] = "UNSPECIFIED", "NO_TYPE", "WRONG_ROLE", "BAD_ADDRESS", "NO_SUCH_CHUNK", "NOT_HELD", "BUSY", "FULL", "OTHER_FILE"}

local f = {
  length = ProtoField.uint64("p2p.length", "length of the message"),
  request = ProtoField.string("p2p.request", "request"),
  response = ProtoField.string("p2p.response", "response"),
  listening_addr = ProtoField.string("p2p.listening_addr", "listening_addr"),
  content_id = ProtoField.bytes("p2p.content_id", "content_id"),
  known = ProtoField.uint64("p2p.known", "known"),
  wait_ms = ProtoField.uint64("p2p.wait_ms", "wait_ms"),
  chunk_id = ProtoField.uint64("p2p.chunk_id", "chunk_id"),
  busy_ok = ProtoField.bool("p2p.busy_ok", "busy_ok"),
  code = ProtoField.uint64("p2p.code", "code", base.DEC, CODES),
  reason = ProtoField.string("p2p.reason", "reason"),
  retry_ms = ProtoField.uint64("p2p.retry_ms", "retry_ms"),
  instead = ProtoField.uint64("p2p.instead", "instead"),
  addresses = ProtoField.string("p2p.addresses", "addresses"),
  lease_ms = ProtoField.uint64("p2p.lease_ms", "lease_ms"),
  chunk_ids = ProtoField.uint64("p2p.chunk_ids", "chunk_ids"),
  chunk = ProtoField.bytes("p2p.chunk", "chunk"),
  file = ProtoField.none("p2p.file", "file"),
  name = ProtoField.string("p2p.file.name", "name"),
  size = ProtoField.uint64("p2p.file.size", "size"),
  chunk_size = ProtoField.uint64("p2p.file.chunk_size", "chunk_size"),
  digests = ProtoField.bytes("p2p.file.digests", "digests"),
  unknown = ProtoField.bytes("p2p.unknown", "a field that is not known"),
}
p2p.fields = f

local wrong = ProtoExpert.new("p2p.wrong", "not what SPEC.md says", expert.group.MALFORMED, expert.severity.ERROR)
p2p.experts = {wrong}

-- message -> field number -> {field, wire type, message inside or how the value is read}
local FILE = {[1] = {f.name, BYTES, "string"}, [2] = {f.size, VARINT}, [3] = {f.chunk_size, VARINT}, [4] = {f.digests, BYTES, "bytes"}}
local REQUEST = {
  {"Join", {[1] = {f.listening_addr, BYTES, "string"}}},
  {"Active Proof", {[1] = {f.listening_addr, BYTES, "string"}, [8] = {f.content_id, BYTES, "bytes"}}},
  {"Peer List", {}},
  {"Chunks Query", {[8] = {f.known, VARINT}, [9] = {f.wait_ms, VARINT}}},
  {"Fetch Chunk", {[1] = {f.chunk_id, VARINT}, [8] = {f.busy_ok, VARINT}}},
}
local RESPONSE = {
  {"Ok", {}},
  {"Bad", {[8] = {f.code, VARINT}, [9] = {f.reason, BYTES, "string"}, [10] = {f.retry_ms, VARINT}, [11] = {f.instead, BYTES, "packed"}}},
  {"Peer List", {[1] = {f.addresses, BYTES, "string"}, [8] = {f.file, BYTES, FILE}, [9] = {f.lease_ms, VARINT}}},
  {"Chunks Query", {[1] = {f.chunk_ids, BYTES, "packed"}}},
  {"chunk", "bytes"},
}


-- Numbers out of bytes.

-- A varint at an offset: its value as a UInt64 and where it ends; nil if it does not end before `stop`.
local function varint(tvb, at, stop)
  local value = UInt64(0)
  for i = 0, 9 do
    if at + i >= stop then return nil end
    local byte = tvb(at + i, 1):uint()
    value = value + UInt64(byte % 128):lshift(7 * i)
    if byte < 128 then return value, at + i + 1 end
  end
  return nil
end

-- The tag at an offset: field number, wire type and where it ends.
local function tag(tvb, at, stop)
  local value, after = varint(tvb, at, stop)
  if not value then return nil end
  return value:rshift(3):tonumber(), value:tonumber() % 8, after
end

-- Where the value behind a tag begins and ends; nil if it is not whole.
local function extent(tvb, wire, at, stop)
  local begin, after = at, nil
  if wire == VARINT then _, after = varint(tvb, at, stop)
  elseif wire == FIXED64 then after = at + 8
  elseif wire == FIXED32 then after = at + 4
  elseif wire == BYTES then
    local size
    size, begin = varint(tvb, at, stop)
    if size and size <= UInt64(MAX_FRAME) then after = begin + size:tonumber() end
  end
  if after and after <= stop then return begin, after end
end


-- A message.

local message  -- below: messages are in fields, and fields in messages

-- The bytes from `begin` to `after` as a range that may be empty.
local function range(tvb, begin, after)
  return after > begin and tvb(begin, after - begin) or nil
end

-- Add a field's value to the tree: the range from `at` with its tag, the value from `begin` to `after`.
local function add(tvb, tree, field, how, at, begin, after)
  local whole = tvb(at, after - at)
  if type(how) == "table" then
    message(tvb, tree:add(field, whole), how, begin, after)
  elseif how == "string" then
    local bytes = range(tvb, begin, after)
    if bytes then tree:add(field, bytes, bytes:string(ENC_UTF_8)) else tree:add(field, whole, "") end
  elseif how == "bytes" then
    local bytes = range(tvb, begin, after)
    if bytes then tree:add(field, bytes) else tree:add(field, whole, "") end
  elseif how == "packed" then
    while begin < after do
      local value, next = varint(tvb, begin, after)
      if not value then tree:add_proto_expert_info(wrong, "a varint that is cut short") return end
      tree:add(field, tvb(begin, next - begin), value)
      begin = next
    end
  else
    local value = varint(tvb, begin, after)
    if field == f.busy_ok then value = value ~= UInt64(0) end
    tree:add(field, whole, value)
  end
end

-- Add all fields of a message; `known` tells which there are.
function message(tvb, tree, known, at, stop)
  while at < stop do
    local number, wire, value = tag(tvb, at, stop)
    local begin, after
    if number then begin, after = extent(tvb, wire, value, stop) end
    if not after then
      tree:add_proto_expert_info(wrong, string.format("byte %d of the frame: no field that is whole", at))
      return
    end
    local field = known[number]
    if field and field[2] == wire then
      add(tvb, tree, field[1], field[3], at, begin, after)
    elseif field and field[3] == "packed" and wire == VARINT then
      add(tvb, tree, field[1], nil, at, begin, after)
    elseif field then
      tree:add_proto_expert_info(wrong, string.format("field %d has wire type %d, where %d is due", number, wire, field[2]))
    else
      tree:add(f.unknown, tvb(at, after - at)):prepend_text(string.format("[%d] ", number))
    end
    at = after
  end
end


-- A frame.

-- The member of `type` that a whole frame carries: number, where its value begins and ends; nil without one. The last one counts.
local function member(tvb)
  local at, stop, found = 8, tvb:len(), nil
  while at < stop do
    local number, wire, value = tag(tvb, at, stop)
    local begin, after
    if number then begin, after = extent(tvb, wire, value, stop) end
    if not after then return nil end
    if wire == BYTES and number >= 1 and number <= 5 then found = {number, begin, after} end
    at = after
  end
  if found then return found[1], found[2], found[3] end
end

-- The chunk id in a Fetch Chunk; nil if it is absent, which means 0.
local function chunk_id(tvb, at, stop)
  while at < stop do
    local number, wire, value = tag(tvb, at, stop)
    local _, after
    if number then _, after = extent(tvb, wire, value, stop) end
    if not after then return nil end
    if number == 1 and wire == VARINT then return varint(tvb, value, stop) end
    at = after
  end
end

-- A few words for the list of packets.
local function summary(what, name, tvb, number, begin, after)
  if what == "request" and number == 5 then return name .. " " .. tostring(chunk_id(tvb, begin, after) or UInt64(0)) end
  if what == "response" and number == 5 then return string.format("chunk of %d bytes", after - begin) end
  return name .. (what == "response" and (number == 3 or number == 4) and " (answer)" or "")
end

-- Show one whole frame. `what` is "request" or "response".
local function show(tvb, pinfo, tree, what)
  local subtree = tree:add(p2p, tvb())
  local types = what == "request" and REQUEST or RESPONSE
  local number, begin, after = member(tvb)
  local name = number and types[number][1] or "no type"
  subtree:append_text(", " .. what .. ": " .. name)
  subtree:add(f.length, tvb(0, 8))
  local shown = subtree:add(f[what], tvb(0, tvb:len()), name)
  local known = {}
  for i, type in ipairs(types) do known[i] = {f[what], BYTES, type[2]} end
  if number and types[number][2] == "bytes" then
    add(tvb, shown, f.chunk, "bytes", 8, begin, after)
  elseif number then
    message(tvb, shown, types[number][2], begin, after)
    if what == "request" and number == 5 and not chunk_id(tvb, begin, after) then
      shown:add(f.chunk_id, tvb(begin - 1, 1), UInt64(0)):append_text(" (absent)")
    end
  elseif tvb:len() > 8 then
    message(tvb, shown, {}, 8, tvb:len())
  end
  pinfo.cols.protocol = "P2P"
  pinfo.cols.info:append((pinfo.private.p2p and "; " or "") .. (number and summary(what, name, tvb, number, begin, after) or "no type"))
  pinfo.private.p2p = "1"
end


-- Which side asks: whoever is not at a port of ours; or else who sent the first frame, unless that can only be an answer.

local stream_of = Field.new("tcp.stream")
local client_of = {}  -- stream -> the port of the side that asks

local ports_text = "8000"
local listed = {}  -- port -> true

-- Whether a frame can be no request: 1a, 22 and 2a stand for both, but what is in them tells.
local function only_an_answer(tvb)
  local number, begin, after = member(tvb)
  if not number then return false end
  local inner = after > begin and tvb(begin, 1):uint() or nil
  if number == 1 then return inner == nil end                    -- Ok is empty, Join is not
  if number == 2 then return inner ~= 0x0a end                   -- Active Proof begins with listening_addr
  if number == 3 then return inner ~= nil end                    -- the request is empty
  if number == 4 then return inner == 0x0a or inner == 0x08 end  -- chunk_ids; the request has only known
  return inner ~= nil and (after - begin > 13 or inner ~= 0x08 and inner ~= 0x40)
end

local function direction(tvb, pinfo)
  local stream = stream_of() and stream_of().value or 0
  if not client_of[stream] then
    local from_client = not only_an_answer(tvb)
    if listed[pinfo.dst_port] ~= listed[pinfo.src_port] then from_client = listed[pinfo.dst_port] or false end
    client_of[stream] = from_client and pinfo.src_port or pinfo.dst_port
  end
  return client_of[stream] == pinfo.src_port and "request" or "response"
end


-- What is ours.

-- The size of the frame at an offset. One whose length cannot be takes all that there is.
local function frame_size(tvb, pinfo, offset)
  local size = tvb(offset, 8):uint64()
  return size > UInt64(MAX_FRAME) and tvb:len() - offset or 8 + size:tonumber()
end

local function show_frame(tvb, pinfo, tree)
  if tvb(0, 8):uint64() > UInt64(MAX_FRAME) then
    local subtree = tree:add(p2p, tvb())
    subtree:add(f.length, tvb(0, 8))
    subtree:add_proto_expert_info(wrong, "a length that cannot be; is it little-endian?")
    pinfo.cols.protocol = "P2P"
  else
    show(tvb, pinfo, tree, direction(tvb, pinfo))
  end
  return tvb:len()
end

function p2p.dissector(tvb, pinfo, tree)
  pinfo.cols.info = ""
  pinfo.private.p2p = nil
  dissect_tcp_pdus(tvb, tree, 8, frame_size, show_frame)
  return tvb:len()
end

-- Whether a segment begins like a frame of ours: a length that can be, and the tag of a member of `type` that fits into it.
-- Many programs send the length by itself: then it has to do alone.
local function begins_frame(tvb)
  if tvb:len() < 8 then return false end
  local size = tvb(0, 8):uint64()
  if size < UInt64(2) or size > UInt64(MAX_FRAME) then return false end
  if tvb:len() == 8 then return true end
  local first = tvb(8, 1):uint()
  if first % 8 ~= BYTES or first < 0x0a or first > 0x2a then return false end
  local inside, after = varint(tvb, 9, tvb:len())
  return not inside or inside + UInt64(after - 8) <= size
end

p2p:register_heuristic("tcp", function(tvb, pinfo, tree)
  if not begins_frame(tvb) then return false end
  if pinfo.can_desegment > 0 then pinfo.can_desegment = 2 end  -- one is lost on the way through the heuristic; with 0 no frame is put together
  pinfo.conversation = p2p  -- what follows on this connection need not begin with a frame
  p2p.dissector(tvb, pinfo, tree)
  return true
end)

p2p.prefs.ports = Pref.range("TCP ports", ports_text, "Ports of trackers and peers, such as 8000,8001-8010", 65535)

local function listen()
  local table = DissectorTable.get("tcp.port")
  table:remove_all(p2p)
  listed = {}
  ports_text = tostring(p2p.prefs.ports)
  if ports_text ~= "" then table:add(ports_text, p2p) end
  for first, last in ports_text:gmatch("(%d+)%-?(%d*)") do
    for port = tonumber(first), tonumber(last) or tonumber(first) do listed[port] = true end
  end
end

function p2p.prefs_changed() listen() end
function p2p.init() client_of = {} end
listen()
