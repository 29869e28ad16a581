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
 *     CRC32C over everything before it          38  consumed 16 of channel 2, low bits
 *                                               40  consumed 16 [2] of channels 0 and 1
 *   note header, 16 bytes: HELLO, HELLO_ACK, PROBE, PROBE_ACK, BYE, BYE_ACK, RESET
 *    16  length 16   bytes of note: behind this header, opaque to the protocol
 *    18  padding 16  bytes between note and trailer: zeros, which nobody looks at; HELLO is padded
 *    20  key 64      to the size that it probes
 *    28  mtu 16      30  reserved 16, zero
 *
 * What follows the trailer is padding of the link and ignored. Which flags go with which opcode,
 * and the limits of lengths, are in the tables of js_wire.c and docs/wire.md. */
#ifndef JS_WIRE_H
#define JS_WIRE_H

#include "js_base.h"

#include <jetstream/js_api.h> /* js_wire_frame, js_wire_decode, js_wire_encode, js_crc32c */

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

#define JS_WIRE_FLAG_SOM 0x01u    /* first chunk of a message, as in the stream */
#define JS_WIRE_FLAG_EOM 0x02u    /* last one */
#define JS_WIRE_FLAG_MORE 0x04u   /* PUT: further parts of this chunk follow */
#define JS_WIRE_FLAG_ACKREQ 0x08u /* SEND, PUT: acknowledge at once */
#define JS_WIRE_FLAG_RETX 0x10u   /* sent before; an ACK: so was the frame that caused it */

/* Has the frame a PSN, that is: is it SEND or PUT? */
JS_INLINE bool js_wire_is_data(uint8_t opcode)
{
    return (opcode & 0x80u) == 0;
}

#endif
