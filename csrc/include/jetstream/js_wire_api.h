/* The frame between hosts, decoded, and its codec; part of js_api.h. What the bytes mean and in
 * which order they are looked at: docs/wire.md; csrc/wire/js_wire.h has the layout. */
#ifndef JETSTREAM_JS_WIRE_API_H
#define JETSTREAM_JS_WIRE_API_H

#include <stddef.h>
#include <stdint.h>

#define JS_WIRE_CHANNELS 3u /* JS_FRAME_CHANNEL_* */

enum js_wire_opcode {
    JS_WIRE_SEND = 0x01, /* a chunk of at most JS_WIRE_INLINE_BYTES */
    JS_WIRE_PUT = 0x02,  /* a part of a longer one, placed where it says */
    JS_WIRE_ACK = 0x80,
    JS_WIRE_PROBE = 0x82, /* wants a PROBE_ACK and an ACK */
    JS_WIRE_PROBE_ACK = 0x83,
    JS_WIRE_HELLO = 0x88,
    JS_WIRE_HELLO_ACK = 0x89,
    JS_WIRE_BYE = 0x8a,
    JS_WIRE_BYE_ACK = 0x8b,
    JS_WIRE_RESET = 0x8c, /* the connection has failed; the note says why */
};

/* Why a frame was refused; each has a counter. */
typedef enum js_wire_reason {
    JS_WIRE_OK = 0,
    JS_WIRE_SHORT = 1,    /* fewer bytes than its headers and lengths need */
    JS_WIRE_FOREIGN = 2,  /* another version */
    JS_WIRE_OPCODE = 3,   /* unknown */
    JS_WIRE_HEADER = 4,   /* header length does not fit the opcode, or a length its limits */
    JS_WIRE_RESERVED = 5, /* a bit that must be zero is not */
    JS_WIRE_CRC = 6,
    JS_WIRE_STALE = 7,  /* dcid or epoch of another connection or incarnation (rel) */
    JS_WIRE_KEY = 8,    /* control frame with a wrong key (rel) */
    JS_WIRE_WINDOW = 9, /* psn outside of the window, or ack of what was never sent (rel) */
    JS_WIRE_PLACE = 10, /* payload would lie outside of the ring (rel) */
    JS_WIRE_REASONS = 11,
} js_wire_reason;

/* A frame, decoded. Fields that its opcode does not have are zero. */
typedef struct js_wire_frame {
    uint8_t opcode;
    uint8_t channel;
    uint8_t flags;
    uint16_t dcid;
    uint16_t epoch;
    uint32_t psn;
    uint16_t ack;
    uint16_t credit;
    uint16_t bytes; /* payload or note */
    uint16_t fragment;
    uint32_t imm;
    uint32_t offset;
    uint32_t total_bytes;
    uint64_t sack[2];
    uint32_t trigger;
    uint16_t delay;
    uint16_t consumed[JS_WIRE_CHANNELS];
    uint64_t key;
    uint16_t mtu;
    uint16_t padding;       /* zeros behind a note; js_wire_encode is told otherwise */
    const uint8_t *payload; /* payload or note, in the frame */
} js_wire_frame;

/* Decodes and checks `bytes` bytes; touches nothing else. `out` means something if JS_WIRE_OK is
 * returned, and as long as the bytes are there. */
JS_API js_wire_reason js_wire_decode(const uint8_t *frame, uint32_t bytes, js_wire_frame *out);
/* Bytes of the frame when encoded, payload and trailer included. */
JS_API uint32_t js_wire_size(const js_wire_frame *frame);
/* Encodes a frame that js_wire_decode would accept into `out`, which has room for
 * js_wire_size(frame) and for padded_bytes; copies payload (which may be NULL if bytes is zero);
 * returns the size. padded_bytes larger than that: so long becomes a frame with a note, by zeros
 * between note and trailer; the others are not padded. At most JS_WIRE_FRAME_BYTES_MAX. */
JS_API uint32_t js_wire_encode(const js_wire_frame *frame, uint32_t padded_bytes, uint8_t *out);
/* A word for a reason, as "crc"; NULL beyond the last. */
JS_API const char *js_wire_reason_name(js_wire_reason reason);
/* CRC32C (Castagnoli, reflected, initial and final inversion), continued from `crc`, 0 at first. */
JS_API uint32_t js_crc32c(uint32_t crc, const void *bytes, size_t count);

#endif
