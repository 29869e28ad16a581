/* The frame: 24 bytes of header, the same on every link (docs/data-plane.md).
 *
 *   delivery header, 16 bytes          word 0 "route"      word 1 "order"
 *     0  version 4 bits, channel 4 bits  8  psn 32
 *     1  opcode                         12  ack 16
 *     2  flags                          14  credit 16
 *     3  header length / 4
 *     4  dcid 16, 6 epoch 16
 *   operation header, 8 bytes          word 2 "body"
 *    16  length 16, 18 fragment 16, 20 imm 32
 *
 * Little endian. The three words are handled whole: on shared memory the order word is the commit
 * of a 64-byte line that holds header and small payload. In a shared-memory stream the flow
 * control is the readers' acknowledgement words, so ack and credit are zero there, and there is
 * no CRC trailer: the bytes never leave the memory of one host. */
#ifndef JS_FRAME_H
#define JS_FRAME_H

#include "js_base.h"

#define JS_FRAME_VERSION 1u
#define JS_FRAME_HEADER_BYTES 24u
#define JS_FRAME_PAYLOAD_BYTES_MAX 65535u

#define JS_FRAME_OP_SEND 0x01u

#define JS_FRAME_FLAG_SOM 0x01u /* first frame of a message */
#define JS_FRAME_FLAG_EOM 0x02u /* last frame of a message */
#define JS_FRAME_FLAG_REF 0x80u /* shared memory only: the payload is elsewhere in the segment */

/* Virtual channels: what kind of traffic a frame belongs to. */
#define JS_FRAME_CHANNEL_COLLECTIVE 0u
#define JS_FRAME_CHANNEL_MESSAGE 1u
#define JS_FRAME_CHANNEL_PUT 2u /* between hosts only: one-sided writes (engine/js_mirror_put.c) */

typedef struct js_frame_header {
    uint64_t route;
    uint64_t order;
    uint64_t body;
} js_frame_header;

JS_STATIC_ASSERT(sizeof(js_frame_header) == JS_FRAME_HEADER_BYTES, "frame header");

/* The part of word 0 that is the same for all frames of a stream. */
JS_INLINE uint64_t js_frame_route(uint32_t channel, uint16_t dcid, uint16_t epoch)
{
    return (uint64_t)(JS_FRAME_VERSION | (channel << 4)) | ((uint64_t)JS_FRAME_OP_SEND << 8) |
           ((uint64_t)(JS_FRAME_HEADER_BYTES / 4) << 24) | ((uint64_t)dcid << 32) |
           ((uint64_t)epoch << 48);
}

JS_INLINE uint64_t js_frame_with_flags(uint64_t route, uint32_t flags)
{
    return route | ((uint64_t)flags << 16);
}

JS_INLINE uint32_t js_frame_flags(uint64_t route)
{
    return (uint32_t)(route >> 16) & 0xffu;
}

JS_INLINE uint64_t js_frame_body(uint32_t length_bytes, uint32_t fragment, uint32_t imm)
{
    return (uint64_t)(length_bytes & 0xffffu) | ((uint64_t)(fragment & 0xffffu) << 16) |
           ((uint64_t)imm << 32);
}

JS_INLINE uint32_t js_frame_length_bytes(uint64_t body)
{
    return (uint32_t)body & 0xffffu;
}

JS_INLINE uint32_t js_frame_fragment(uint64_t body)
{
    return (uint32_t)(body >> 16) & 0xffffu;
}

JS_INLINE uint32_t js_frame_imm(uint64_t body)
{
    return (uint32_t)(body >> 32);
}

#endif
