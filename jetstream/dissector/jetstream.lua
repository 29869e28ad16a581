-- Wireshark and tshark: the frames of jetstream, on Ethernet and in UDP datagrams.
--
--   tshark -X lua_script:$(jetstream info --dissector) -r capture.pcapng
--
-- docs/wire.md has the layout. On Ethernet the EtherType says what a frame is (preference
-- jetstream.ethertype). Ports of UDP are not fixed: datagrams are recognised by their first bytes and
-- lengths; a port can be set (jetstream.udp_port, or Decode As).

local jetstream = Proto("jetstream", "jetstream frame")

local VERSION = 1
local CHANNELS = { [0] = "collective", [1] = "message", [2] = "put" }
local OPCODES = {
    [0x01] = "SEND", [0x02] = "PUT", [0x80] = "ACK", [0x82] = "PROBE", [0x83] = "PROBE_ACK",
    [0x88] = "HELLO", [0x89] = "HELLO_ACK", [0x8a] = "BYE", [0x8b] = "BYE_ACK", [0x8c] = "RESET",
}
local SEND, PUT, ACK = 0x01, 0x02, 0x80
local DELIVERY_BYTES, SEND_BYTES, PUT_BYTES, ACK_BYTES, NOTE_BYTES = 16, 24, 32, 44, 32
local CRC_BYTES, INLINE_BYTES, NOTE_BYTES_MAX, FRAME_BYTES_MAX = 4, 40, 256, 65507

-- --- fields ---------------------------------------------------------------------------------

local f = jetstream.fields
f.version = ProtoField.uint8("jetstream.version", "Version", base.DEC, nil, 0x0f)
f.channel = ProtoField.uint8("jetstream.channel", "Channel", base.DEC, CHANNELS, 0xf0)
f.opcode = ProtoField.uint8("jetstream.opcode", "Opcode", base.HEX, OPCODES)
f.flags = ProtoField.uint8("jetstream.flags", "Flags", base.HEX)
f.som = ProtoField.bool("jetstream.flags.som", "First chunk of a message", 8, nil, 0x01)
f.eom = ProtoField.bool("jetstream.flags.eom", "Last chunk of a message", 8, nil, 0x02)
f.more = ProtoField.bool("jetstream.flags.more", "Parts of the chunk follow", 8, nil, 0x04)
f.ackreq = ProtoField.bool("jetstream.flags.ackreq", "Acknowledge at once", 8, nil, 0x08)
f.retx = ProtoField.bool("jetstream.flags.retx", "Sent before", 8, nil, 0x10)
f.unused = ProtoField.uint8("jetstream.flags.reserved", "Reserved", base.HEX, nil, 0xe0)
f.header = ProtoField.uint8("jetstream.header_words", "Header length in words of 4 bytes")
f.dcid = ProtoField.uint16("jetstream.dcid", "Connection at the receiver", base.HEX)
f.sender = ProtoField.uint8("jetstream.sender", "Rank of the sender")
f.epoch = ProtoField.uint16("jetstream.epoch", "Epoch of the receiver", base.HEX)
f.psn = ProtoField.uint32("jetstream.psn", "PSN")
f.ack = ProtoField.uint16("jetstream.ack", "Acknowledged up to (low bits)")
f.credit = ProtoField.uint16("jetstream.credit", "PSN limit (low bits)")
f.length = ProtoField.uint16("jetstream.length", "Length")
f.fragment = ProtoField.uint16("jetstream.fragment", "Fragment")
f.imm = ProtoField.uint32("jetstream.imm", "Immediate", base.HEX)
f.offset = ProtoField.uint32("jetstream.offset", "Offset in the ring")
f.total = ProtoField.uint32("jetstream.total_bytes", "Bytes of the whole chunk")
f.sack_low = ProtoField.uint64("jetstream.sack.low", "Received beyond, 1 to 64", base.HEX)
f.sack_high = ProtoField.uint64("jetstream.sack.high", "Received beyond, 65 to 128", base.HEX)
f.trigger = ProtoField.uint32("jetstream.trigger", "Caused by PSN")
f.delay = ProtoField.uint16("jetstream.delay", "Delay in units of 64 ns")
f.delay_ns = ProtoField.uint32("jetstream.delay_ns", "Delay in ns")
f.reserved = ProtoField.uint16("jetstream.reserved", "Reserved", base.HEX)
f.consumed_0 = ProtoField.uint16("jetstream.consumed.collective", "Consumed, collective")
f.consumed_1 = ProtoField.uint16("jetstream.consumed.message", "Consumed, message")
f.consumed_2 = ProtoField.uint16("jetstream.consumed.put", "Consumed, put")
f.padding_bytes = ProtoField.uint16("jetstream.padding_bytes", "Bytes of padding")
f.key = ProtoField.uint64("jetstream.key", "Key", base.HEX)
f.mtu = ProtoField.uint16("jetstream.mtu", "MTU")
f.payload = ProtoField.bytes("jetstream.payload", "Payload")
f.note = ProtoField.bytes("jetstream.note", "Note")
f.padding = ProtoField.bytes("jetstream.padding", "Padding")
f.crc = ProtoField.uint32("jetstream.crc", "CRC32C", base.HEX)
f.crc_status = ProtoField.uint8("jetstream.crc.status", "CRC status", base.DEC,
    { [0] = "Bad", [1] = "Good" })
f.link_padding = ProtoField.bytes("jetstream.link_padding", "Padding of the link")
f.repeats = ProtoField.framenum("jetstream.repeats", "Repeats the frame in", base.NONE,
    frametype.RETRANS_PREV)

local x = jetstream.experts
x.malformed = ProtoExpert.new("jetstream.malformed", "Malformed", expert.group.MALFORMED,
    expert.severity.ERROR)
x.reserved = ProtoExpert.new("jetstream.reserved_bit", "A reserved bit is set",
    expert.group.PROTOCOL, expert.severity.ERROR)
x.crc = ProtoExpert.new("jetstream.crc.bad", "Bad CRC", expert.group.CHECKSUM,
    expert.severity.ERROR)
x.retransmission = ProtoExpert.new("jetstream.retransmission", "Retransmission",
    expert.group.SEQUENCE, expert.severity.NOTE)
x.reset = ProtoExpert.new("jetstream.reset", "The connection has failed", expert.group.SEQUENCE,
    expert.severity.WARN)

-- --- CRC32C -----------------------------------------------------------------------------------

local bxor, band, rshift = bit.bxor, bit.band, bit.rshift
local crc_table = {}
for byte = 0, 255 do
    local remainder = byte
    for _ = 1, 8 do
        local low = band(remainder, 1)
        remainder = rshift(remainder, 1)
        if low == 1 then
            remainder = bxor(remainder, 0x82f63b78)
        end
    end
    crc_table[byte] = remainder
end

local function crc32c(text)
    local remainder = 0xffffffff
    for i = 1, #text do
        local index = band(bxor(remainder, text:byte(i)), 0xff)
        remainder = bxor(rshift(remainder, 8), crc_table[index])
    end
    return bxor(remainder, 0xffffffff) % 0x100000000
end

-- --- what a frame is --------------------------------------------------------------------------

local function header_bytes(opcode)
    if opcode == SEND then
        return SEND_BYTES
    elseif opcode == PUT then
        return PUT_BYTES
    elseif opcode == ACK then
        return ACK_BYTES
    end
    return OPCODES[opcode] and NOTE_BYTES
end

-- Returns the bytes of payload or note, and of the padding behind it.
local function lengths(buffer, opcode)
    if opcode == ACK then
        return 0, 0
    elseif opcode == SEND or opcode == PUT then
        return buffer(16, 2):le_uint(), 0
    end
    return buffer(16, 2):le_uint(), buffer(18, 2):le_uint()
end

-- Why the bytes are no frame; nil if they are one, but for reserved bits and the CRC.
local function defect(buffer)
    local bytes = buffer:captured_len()
    if bytes < DELIVERY_BYTES + CRC_BYTES then
        return "too short for any frame"
    end
    local opcode = buffer(1, 1):uint()
    local header = header_bytes(opcode)
    if band(buffer(0, 1):uint(), 0x0f) ~= VERSION then
        return "another version"
    elseif not header then
        return "unknown opcode"
    elseif buffer(3, 1):uint() * 4 ~= header then
        return "header length does not fit the opcode"
    elseif bytes < header + CRC_BYTES then
        return "too short for its headers"
    end
    local length, padding = lengths(buffer, opcode)
    local total = opcode == PUT and buffer(28, 4):le_uint() or 0
    if opcode == SEND and length > INLINE_BYTES then
        return "too long for a SEND"
    elseif opcode == PUT and (length == 0 or length > total or total <= INLINE_BYTES) then
        return "length does not fit the chunk"
    elseif opcode > ACK and length > NOTE_BYTES_MAX then
        return "note too long"
    elseif header + length + padding + CRC_BYTES > FRAME_BYTES_MAX then
        return "longer than any frame"
    elseif bytes < header + length + padding + CRC_BYTES then
        return "too short for its lengths"
    end
    return nil
end

local function has_reserved_bits(buffer, opcode)
    local channel = rshift(buffer(0, 1):uint(), 4)
    local flags = buffer(2, 1):uint()
    if opcode == SEND then
        return channel > 2 or band(flags, 0xe4) ~= 0
    elseif opcode == PUT then
        return channel > 2 or band(flags, 0xe0) ~= 0
    elseif opcode == ACK then
        return channel > 0 or band(flags, 0xef) ~= 0
    end
    return channel > 0 or flags ~= 0 or buffer(30, 2):le_uint() ~= 0
end

-- --- repeats: the first packet in which each PSN of a connection was seen -------------------------

local first_seen = {}
local repeats = {}

function jetstream.init()
    first_seen = {}
    repeats = {}
end

local function remember(buffer, pinfo)
    if not pinfo.visited then
        local key = buffer(4, 8):raw() -- dcid, epoch, psn
        local first = first_seen[key]
        if first and first ~= pinfo.number then
            repeats[pinfo.number] = first
        elseif not first then
            first_seen[key] = pinfo.number
        end
    end
    return repeats[pinfo.number]
end

-- --- the tree ---------------------------------------------------------------------------------

local function add_delivery(tree, buffer)
    tree:add(f.version, buffer(0, 1))
    tree:add(f.channel, buffer(0, 1))
    tree:add(f.opcode, buffer(1, 1))
    local flags = tree:add(f.flags, buffer(2, 1))
    for _, field in ipairs({ f.som, f.eom, f.more, f.ackreq, f.retx, f.unused }) do
        flags:add(field, buffer(2, 1))
    end
    tree:add(f.header, buffer(3, 1))
    tree:add_le(f.dcid, buffer(4, 2)):append_text(", from rank " .. buffer(4, 1):uint())
    tree:add(f.sender, buffer(4, 1)):set_generated()
    tree:add_le(f.epoch, buffer(6, 2))
    tree:add_le(f.psn, buffer(8, 4))
    tree:add_le(f.ack, buffer(12, 2))
    tree:add_le(f.credit, buffer(14, 2))
end

local function add_ack(tree, buffer)
    tree:add_le(f.sack_low, buffer(16, 8))
    tree:add_le(f.sack_high, buffer(24, 8))
    tree:add_le(f.trigger, buffer(32, 4))
    tree:add_le(f.delay, buffer(36, 2))
    tree:add(f.delay_ns, buffer(36, 2), buffer(36, 2):le_uint() * 64):set_generated()
    tree:add_le(f.consumed_2, buffer(38, 2))
    tree:add_le(f.consumed_0, buffer(40, 2))
    tree:add_le(f.consumed_1, buffer(42, 2))
end

local function add_operation(tree, buffer, opcode)
    tree:add_le(f.length, buffer(16, 2))
    if opcode == SEND or opcode == PUT then
        tree:add_le(f.fragment, buffer(18, 2))
        tree:add_le(f.imm, buffer(20, 4))
        if opcode == PUT then
            tree:add_le(f.offset, buffer(24, 4))
            tree:add_le(f.total, buffer(28, 4))
        end
        return
    end
    tree:add_le(f.padding_bytes, buffer(18, 2))
    tree:add_le(f.key, buffer(20, 8))
    tree:add_le(f.mtu, buffer(28, 2))
    tree:add_le(f.reserved, buffer(30, 2))
end

local function add_body(tree, buffer, opcode, header)
    local length, padding = lengths(buffer, opcode)
    local is_data = opcode == SEND or opcode == PUT
    if length > 0 then
        tree:add(is_data and f.payload or f.note, buffer(header, length))
    end
    if padding > 0 then
        tree:add(f.padding, buffer(header + length, padding))
    end
    local checked = header + length + padding
    local crc = buffer(checked, CRC_BYTES)
    local item = tree:add_le(f.crc, crc)
    local computed = crc32c(buffer(0, checked):raw())
    local is_good = computed == crc:le_uint()
    tree:add(f.crc_status, crc, is_good and 1 or 0):set_generated()
    if not is_good then
        item:add_proto_expert_info(x.crc, string.format("Bad CRC, should be 0x%08x", computed))
    end
    local rest = buffer:captured_len() - checked - CRC_BYTES
    if rest > 0 then
        tree:add(f.link_padding, buffer(checked + CRC_BYTES, rest))
    end
    return is_good
end

local function summary(buffer, opcode)
    local text = string.format("%s psn=%u ack=%u credit=%u", OPCODES[opcode],
        buffer(8, 4):le_uint(), buffer(12, 2):le_uint(), buffer(14, 2):le_uint())
    if opcode == ACK then
        return text .. string.format(" trigger=%u", buffer(32, 4):le_uint())
    end
    text = text .. string.format(" len=%u", buffer(16, 2):le_uint())
    if opcode == PUT then
        text = text .. string.format(" offset=%u of=%u", buffer(24, 4):le_uint(),
            buffer(28, 4):le_uint())
    end
    return text
end

function jetstream.dissector(buffer, pinfo, root)
    pinfo.cols.protocol = "jetstream"
    local tree = root:add(jetstream, buffer())
    local problem = defect(buffer)
    if problem then
        pinfo.cols.info = "no frame: " .. problem
        tree:add_proto_expert_info(x.malformed, problem)
        return buffer:captured_len()
    end
    local opcode = buffer(1, 1):uint()
    local header = header_bytes(opcode)
    local info = summary(buffer, opcode)
    tree:append_text(", " .. info)
    add_delivery(tree, buffer)
    if opcode == ACK then
        add_ack(tree, buffer)
    else
        add_operation(tree, buffer, opcode)
    end
    local is_reserved = has_reserved_bits(buffer, opcode)
    if is_reserved then
        tree:add_proto_expert_info(x.reserved)
        info = info .. " [reserved bit]"
    end
    local is_good = add_body(tree, buffer, opcode, header)
    if not is_good then
        info = info .. " [bad CRC]"
    elseif not is_reserved and (opcode == SEND or opcode == PUT) then
        local first = remember(buffer, pinfo)
        if first then
            tree:add(f.repeats, first):set_generated()
        end
        if first or band(buffer(2, 1):uint(), 0x10) ~= 0 then
            tree:add_proto_expert_info(x.retransmission)
            info = info .. " [retransmission]"
        end
    elseif OPCODES[opcode] == "RESET" then
        tree:add_proto_expert_info(x.reset)
    end
    pinfo.cols.info = info
    return buffer:captured_len()
end

-- --- where frames are found -------------------------------------------------------------------

jetstream:register_heuristic("udp", function(buffer, pinfo, root)
    if defect(buffer) then
        return false
    end
    jetstream.dissector(buffer, pinfo, root)
    return true
end)

jetstream.prefs.ethertype = Pref.uint("EtherType", 0x88b5, "EtherType of the frames")
jetstream.prefs.udp_port = Pref.uint("UDP port", 0, "A port whose datagrams are all frames; 0: none")

local ethertypes = DissectorTable.get("ethertype")
local ports = DissectorTable.get("udp.port")
local chosen = { ethertype = 0, udp_port = 0 }

local function choose(into, name)
    local value = jetstream.prefs[name]
    if chosen[name] ~= 0 then
        into:remove(chosen[name], jetstream)
    end
    if value ~= 0 then
        into:add(value, jetstream)
    end
    chosen[name] = value
end

local function choose_all()
    choose(ethertypes, "ethertype")
    choose(ports, "udp_port")
end

jetstream.prefs_changed = choose_all
choose_all()
ports:add_for_decode_as(jetstream)
