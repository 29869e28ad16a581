/* The codec of the frame between hosts.
 *
 * Decoding looks at things in this order, each only when the ones before are known to be sound:
 * 20 bytes at least, version, opcode, header length, the bytes of the header, lengths within their
 * limits, the bytes that they need, reserved bits, CRC. */
#include "js_wire.h"

#include "js_assert.h"
#include "js_crc32c.h"

#include <endian.h>
#include <string.h>

#define WIRE_FLAGS_DATA                                                                            \
    (JS_WIRE_FLAG_SOM | JS_WIRE_FLAG_EOM | JS_WIRE_FLAG_ACKREQ | JS_WIRE_FLAG_RETX)

/* --- words, wherever they lie ---------------------------------------------------------------- */
static uint16_t wire_get_u16(const uint8_t *at)
{
    uint16_t value = 0;
    memcpy(&value, at, sizeof(value));
    return le16toh(value);
}

static uint32_t wire_get_u32(const uint8_t *at)
{
    uint32_t value = 0;
    memcpy(&value, at, sizeof(value));
    return le32toh(value);
}

static uint64_t wire_get_u64(const uint8_t *at)
{
    uint64_t value = 0;
    memcpy(&value, at, sizeof(value));
    return le64toh(value);
}

static void wire_put_u16(uint8_t *at, uint16_t value)
{
    value = htole16(value);
    memcpy(at, &value, sizeof(value));
}

static void wire_put_u32(uint8_t *at, uint32_t value)
{
    value = htole32(value);
    memcpy(at, &value, sizeof(value));
}

static void wire_put_u64(uint8_t *at, uint64_t value)
{
    value = htole64(value);
    memcpy(at, &value, sizeof(value));
}

/* --- what goes with an opcode ---------------------------------------------------------------- */
/* Bytes of all headers of an opcode; 0: there is no such opcode. */
static uint32_t wire_header_bytes(uint32_t opcode)
{
    switch (opcode) {
    case JS_WIRE_SEND:
        return JS_WIRE_SEND_BYTES;
    case JS_WIRE_PUT:
        return JS_WIRE_PUT_BYTES;
    case JS_WIRE_ACK:
        return JS_WIRE_ACK_BYTES;
    case JS_WIRE_PROBE:
    case JS_WIRE_PROBE_ACK:
    case JS_WIRE_HELLO:
    case JS_WIRE_HELLO_ACK:
    case JS_WIRE_BYE:
    case JS_WIRE_BYE_ACK:
    case JS_WIRE_RESET:
        return JS_WIRE_CONTROL_BYTES;
    default:
        return 0;
    }
}

static uint32_t wire_flags(uint32_t opcode)
{
    switch (opcode) {
    case JS_WIRE_SEND:
        return WIRE_FLAGS_DATA;
    case JS_WIRE_PUT:
        return WIRE_FLAGS_DATA | JS_WIRE_FLAG_MORE;
    case JS_WIRE_ACK:
        return JS_WIRE_FLAG_RETX;
    default:
        return 0;
    }
}

/* --- decoding -------------------------------------------------------------------------------- */
/* The fields behind the delivery header. Returns whether lengths are within their limits; tells
 * how many bytes of padding there are, and bits that have to be zero. */
static bool wire_get_operation(const uint8_t *frame, js_wire_frame *out, uint32_t *out_padding,
                               uint32_t *out_reserved)
{
    *out_padding = 0;
    *out_reserved = 0;
    if (out->opcode == JS_WIRE_ACK) {
        out->sack[0] = wire_get_u64(frame + 16);
        out->sack[1] = wire_get_u64(frame + 24);
        out->trigger = wire_get_u32(frame + 32);
        out->delay = wire_get_u16(frame + 36);
        out->consumed[2] = wire_get_u16(frame + 38);
        out->consumed[0] = wire_get_u16(frame + 40);
        out->consumed[1] = wire_get_u16(frame + 42);
        return true;
    }
    out->bytes = wire_get_u16(frame + 16);
    if (js_wire_is_data(out->opcode)) {
        out->fragment = wire_get_u16(frame + 18);
        out->imm = wire_get_u32(frame + 20);
        if (out->opcode == JS_WIRE_SEND) {
            out->payload = frame + JS_WIRE_SEND_BYTES;
            return out->bytes <= JS_WIRE_INLINE_BYTES;
        }
        out->offset = wire_get_u32(frame + 24);
        out->total_bytes = wire_get_u32(frame + 28);
        out->payload = frame + JS_WIRE_PUT_BYTES;
        return out->bytes > 0 && out->bytes <= out->total_bytes &&
               out->total_bytes > JS_WIRE_INLINE_BYTES;
    }
    *out_padding = wire_get_u16(frame + 18);
    out->padding = (uint16_t)*out_padding;
    out->key = wire_get_u64(frame + 20);
    out->mtu = wire_get_u16(frame + 28);
    *out_reserved = wire_get_u16(frame + 30);
    out->payload = frame + JS_WIRE_CONTROL_BYTES;
    return out->bytes <= JS_WIRE_NOTE_BYTES_MAX;
}

js_wire_reason js_wire_decode(const uint8_t *frame, uint32_t bytes, js_wire_frame *out)
{
    if (bytes < JS_WIRE_FRAME_BYTES_MIN) {
        return JS_WIRE_SHORT;
    }
    if ((frame[0] & 0xfu) != JS_WIRE_VERSION) {
        return JS_WIRE_FOREIGN;
    }
    uint32_t header_bytes = wire_header_bytes(frame[1]);
    if (header_bytes == 0) {
        return JS_WIRE_OPCODE;
    }
    if (frame[3] * 4u != header_bytes) {
        return JS_WIRE_HEADER;
    }
    if (bytes < header_bytes + JS_WIRE_CRC_BYTES) {
        return JS_WIRE_SHORT;
    }
    *out = (js_wire_frame){
        .opcode = frame[1],
        .channel = frame[0] >> 4,
        .flags = frame[2],
        .dcid = wire_get_u16(frame + 4),
        .epoch = wire_get_u16(frame + 6),
        .psn = wire_get_u32(frame + 8),
        .ack = wire_get_u16(frame + 12),
        .credit = wire_get_u16(frame + 14),
    };
    uint32_t padding = 0;
    uint32_t reserved = 0;
    bool is_within = wire_get_operation(frame, out, &padding, &reserved);
    uint32_t checked_bytes = header_bytes + out->bytes + padding;
    if (!is_within || checked_bytes + JS_WIRE_CRC_BYTES > JS_WIRE_FRAME_BYTES_MAX) {
        return JS_WIRE_HEADER;
    }
    if (bytes < checked_bytes + JS_WIRE_CRC_BYTES) {
        return JS_WIRE_SHORT;
    }
    uint32_t channels = js_wire_is_data(out->opcode) ? JS_WIRE_CHANNELS : 1;
    if (out->channel >= channels || (out->flags & ~wire_flags(out->opcode)) != 0 || reserved != 0) {
        return JS_WIRE_RESERVED;
    }
    if (js_crc32c(0, frame, checked_bytes) != wire_get_u32(frame + checked_bytes)) {
        return JS_WIRE_CRC;
    }
    return JS_WIRE_OK;
}

/* --- encoding -------------------------------------------------------------------------------- */
uint32_t js_wire_size(const js_wire_frame *frame)
{
    return wire_header_bytes(frame->opcode) + frame->bytes + JS_WIRE_CRC_BYTES;
}

/* What comes behind the delivery header and in front of the payload. */
static void wire_put_operation(const js_wire_frame *frame, uint32_t padding, uint8_t *out)
{
    if (frame->opcode == JS_WIRE_ACK) {
        wire_put_u64(out + 16, frame->sack[0]);
        wire_put_u64(out + 24, frame->sack[1]);
        wire_put_u32(out + 32, frame->trigger);
        wire_put_u16(out + 36, frame->delay);
        wire_put_u16(out + 38, frame->consumed[2]);
        wire_put_u16(out + 40, frame->consumed[0]);
        wire_put_u16(out + 42, frame->consumed[1]);
        return;
    }
    wire_put_u16(out + 16, frame->bytes);
    if (js_wire_is_data(frame->opcode)) {
        wire_put_u16(out + 18, frame->fragment);
        wire_put_u32(out + 20, frame->imm);
        if (frame->opcode == JS_WIRE_PUT) {
            wire_put_u32(out + 24, frame->offset);
            wire_put_u32(out + 28, frame->total_bytes);
        }
        return;
    }
    wire_put_u16(out + 18, (uint16_t)padding);
    wire_put_u64(out + 20, frame->key);
    wire_put_u16(out + 28, frame->mtu);
    wire_put_u16(out + 30, 0);
}

uint32_t js_wire_encode(const js_wire_frame *frame, uint32_t padded_bytes, uint8_t *out)
{
    uint32_t header_bytes = wire_header_bytes(frame->opcode);
    uint32_t size = header_bytes + frame->bytes + JS_WIRE_CRC_BYTES;
    JS_DASSERT(header_bytes != 0 && size <= JS_WIRE_FRAME_BYTES_MAX);
    uint32_t padding = 0;
    if (header_bytes == JS_WIRE_CONTROL_BYTES && !js_wire_is_data(frame->opcode)) {
        padded_bytes = (uint32_t)js_min_u64(padded_bytes, JS_WIRE_FRAME_BYTES_MAX);
        padding = padded_bytes > size ? padded_bytes - size : 0;
    }
    out[0] = (uint8_t)(JS_WIRE_VERSION | (uint32_t)frame->channel << 4);
    out[1] = frame->opcode;
    out[2] = frame->flags;
    out[3] = (uint8_t)(header_bytes / 4);
    wire_put_u16(out + 4, frame->dcid);
    wire_put_u16(out + 6, frame->epoch);
    wire_put_u32(out + 8, frame->psn);
    wire_put_u16(out + 12, frame->ack);
    wire_put_u16(out + 14, frame->credit);
    wire_put_operation(frame, padding, out);
    uint8_t *end = out + header_bytes;
    if (padding != 0) {
        memset(end + frame->bytes, 0, padding);
    }
    uint32_t crc = js_crc32c(0, out, header_bytes);
    if (frame->bytes != 0) {
        crc = js_crc32c_copy(crc, end, frame->payload, frame->bytes);
        end += frame->bytes;
    }
    wire_put_u32(end + padding, js_crc32c(crc, end, padding));
    return size + padding;
}

const char *js_wire_reason_name(js_wire_reason reason)
{
    static const char *const names[JS_WIRE_REASONS] = {
        [JS_WIRE_OK] = "ok",         [JS_WIRE_SHORT] = "short",   [JS_WIRE_FOREIGN] = "foreign",
        [JS_WIRE_OPCODE] = "opcode", [JS_WIRE_HEADER] = "header", [JS_WIRE_RESERVED] = "reserved",
        [JS_WIRE_CRC] = "crc",       [JS_WIRE_STALE] = "stale",   [JS_WIRE_KEY] = "key",
        [JS_WIRE_WINDOW] = "window", [JS_WIRE_PLACE] = "place",
    };
    return (uint32_t)reason < JS_WIRE_REASONS ? names[reason] : NULL;
}
