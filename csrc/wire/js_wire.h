/* The frame between hosts: what docs/wire.md describes, byte by byte. Little endian.
 *
 *   delivery header, 16 bytes, every frame     operation header, 8 bytes: SEND, PUT
 *     0  version 4 bits, channel 4 bits         16  length 16   bytes of payload in this frame
 *     1  opcode                                 18  fragment 16 as in the stream's frame
 *     2  flags                                  20  imm 32      as in the stream's frame
 *     3  header length / 4                     place, 8 bytes: PUT
 *     4  dcid 16   receiver's connection        24  offset 32   of this payload in the ring
 *     6  epoch 16  receiver's incarnation       28  total 32    bytes of the whole chunk
 *     8  psn 32    control: the next one       acknowledgement, 28 bytes: ACK
 *    12  ack 16    low bits of rcv_nxt          16  sack 128    bit i: psn rcv_nxt + 1 + i
 *    14  credit 16 low bits of the PSN limit    32  trigger 32  psn that caused it
 *   trailer, 4 bytes, every frame               36  delay 16    since that, 64 ns units
 *     CRC32C over everything before it          38  reserved 16, zero
 *                                               40  consumed 16 [2] by channel, low bits
 *   note, 2 bytes, then so many of note: HELLO, HELLO_ACK, PROBE, PROBE_ACK, BYE, BYE_ACK, RESET
 *    16  length 16   18  reserved 16, zero   20  key 64   28  mtu 16  30  reserved 16, zero
 *    32  note: opaque to the protocol; HELLO is padded with zeros to the size that it probes
 *
 * What follows the trailer is padding of the link and ignored. */
#ifndef JS_WIRE_H
#define JS_WIRE_H

#include "js_base.h"

#define JS_WIRE_VERSION 1u
#define JS_WIRE_DELIVERY_BYTES 16u
#define JS_WIRE_SEND_BYTES 24u
#define JS_WIRE_PUT_BYTES 32u
#define JS_WIRE_ACK_BYTES 44u
#define JS_WIRE_CONTROL_BYTES 32u /* without the note */
#define JS_WIRE_CRC_BYTES 4u
#define JS_WIRE_FRAME_BYTES_MIN (JS_WIRE_DELIVERY_BYTES + JS_WIRE_CRC_BYTES)
#define JS_WIRE_FRAME_BYTES_MAX 65507u /* the largest UDP datagram */
#define JS_WIRE_NOTE_BYTES_MAX 256u
#define JS_WIRE_INLINE_BYTES 40u /* payload of a SEND: fits a line of a stream */
#define JS_WIRE_CHANNELS 2u      /* JS_FRAME_CHANNEL_* */

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

#define JS_WIRE_FLAG_SOM 0x01u    /* first chunk of a message, as in the stream */
#define JS_WIRE_FLAG_EOM 0x02u    /* last one */
#define JS_WIRE_FLAG_MORE 0x04u   /* PUT: further parts of this chunk follow */
#define JS_WIRE_FLAG_ACKREQ 0x08u /* acknowledge at once */
#define JS_WIRE_FLAG_RETX 0x10u   /* sent before; an ACK: so was the frame that caused it */

/* Why a frame was refused; each has a counter. In the order in which they are looked for. */
typedef enum js_wire_reason {
    JS_WIRE_OK,
    JS_WIRE_SHORT,    /* fewer bytes than its headers and lengths need */
    JS_WIRE_FOREIGN,  /* another version */
    JS_WIRE_OPCODE,   /* unknown */
    JS_WIRE_HEADER,   /* header length does not fit the opcode, or a length its limits */
    JS_WIRE_RESERVED, /* a bit that must be zero is not */
    JS_WIRE_CRC,
    JS_WIRE_STALE,  /* dcid or epoch of another connection or incarnation (rel) */
    JS_WIRE_KEY,    /* control frame with a wrong key (rel) */
    JS_WIRE_WINDOW, /* psn outside of the window, or ack of what was never sent (rel) */
    JS_WIRE_PLACE,  /* payload would lie outside of the ring (rel) */
    JS_WIRE_REASONS
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
    const uint8_t *payload; /* payload or note, in the frame */
} js_wire_frame;

/* Decodes and checks `bytes` bytes; touches nothing else. `frame_bytes`, if not NULL, is told the
 * size without padding. */
js_wire_reason js_wire_decode(const uint8_t *frame, uint32_t bytes, js_wire_frame *out);
/* Bytes of the frame when encoded, payload and trailer included. */
uint32_t js_wire_size(const js_wire_frame *frame);
/* Encodes into `out`, which has room for js_wire_size(frame); copies payload (which may be NULL if
 * bytes is zero); returns the size. `padded_bytes` larger than that: zeros up to it come before the
 * trailer; only control frames are padded (a note of that length, for the decoder). */
uint32_t js_wire_encode(const js_wire_frame *frame, uint32_t padded_bytes, uint8_t *out);
/* Has the frame a PSN, that is: is it SEND or PUT? */
JS_INLINE bool js_wire_is_data(uint8_t opcode)
{
    return (opcode & 0x80u) == 0;
}
/* CRC32C (Castagnoli, reflected, initial and final inversion), continued from `crc`, 0 at first. */
uint32_t js_crc32c(uint32_t crc, const void *bytes, size_t count);
const char *js_wire_reason_name(js_wire_reason reason);

#endif
