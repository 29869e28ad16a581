/* A stream: single producer, several readers, each frame published once and read in place by all.
 *
 * In the segment it is three parts:
 *   readers  one cache line per reader: how many frames it has consumed (W: reader, R: producer)
 *   lines    ring of 64-byte lines: 24-byte frame header, then 40 bytes of payload or, for a
 *            larger payload, its offset in the ring of bytes (W: producer, R: readers)
 *   payload  ring of bytes (W: producer, R: readers)
 * Frame number `psn` lives in line psn mod slots. The line's second word carries psn and is
 * written last with release order: a reader that finds the psn it expects (acquire) sees header
 * and payload. A reader frees a frame by storing how many it has consumed in its word (release);
 * the producer reads the readers' words (acquire) only when it has run out of room. Numbers wrap
 * at 2^32.
 *
 * The payload of a frame can also lie elsewhere in the segment and be published by reference: the
 * line then gives its offset in the segment. And a frame for a single reader can be lent: between
 * its publication and its release the payload belongs to the reader, which may write to it; then
 * it belongs to the producer again, which takes it back before the memory is used anew. A line of
 * memory that the other side has just read and written is cheaper to have back than one of which
 * it keeps a copy.
 *
 * A line is valid for a reader only while it holds the number the reader expects, so lines are
 * never cleared. Zeroed memory is a fresh stream, because numbering does not begin at zero:
 * a stream that nobody uses never costs a page. */
#ifndef JS_STREAM_H
#define JS_STREAM_H

#include "js_atomic.h"
#include "js_base.h"
#include "js_copy.h"
#include "js_distance.h"

#define JS_STREAM_INLINE_BYTES 40u
/* What is shorter fits into the buffers of a core's stores, wherever the reader is. */
#define JS_STREAM_FAR_BYTES 512u
/* Bit of the route word: payload.offset counts from the start of the segment. It is the frame's
 * flag JS_FRAME_FLAG_REF. */
#define JS_STREAM_BY_REF (1ull << 23)

typedef struct js_stream_line {
    uint64_t route;
    uint64_t order; /* low 32 bits: psn; the commit */
    uint64_t body;
    union {
        uint8_t bytes[JS_STREAM_INLINE_BYTES];
        uint64_t offset; /* of the payload, in the ring of bytes or in the segment */
    } payload;
} JS_ALIGNED(JS_CACHE_LINE) js_stream_line;

typedef struct js_stream_reader {
    uint32_t consumed; /* frames consumed, wraps; W: reader, R: producer, rel/acq */
    uint32_t reserved[15];
} JS_ALIGNED(JS_CACHE_LINE) js_stream_reader;

JS_STATIC_ASSERT(sizeof(js_stream_line) == JS_CACHE_LINE, "one line, one cache line");
JS_STATIC_ASSERT(sizeof(js_stream_reader) == JS_CACHE_LINE, "one writer per cache line");

/* Where a stream lies. */
typedef struct js_stream_layout {
    uint32_t reader_count;
    uint32_t slots;          /* power of two */
    uint64_t payload_bytes;  /* power of two, at least twice the largest frame */
    uint32_t sequence_start; /* number of the first frame; js_stream_start_fits */
    uint8_t *segment;        /* that references count from; NULL: there are none */
    uint64_t segment_bytes;
} js_stream_layout;

/* The producer's private side. */
typedef struct js_stream_tx {
    js_stream_line *lines;
    uint8_t *payload;
    const js_stream_reader *readers;
    uint32_t mask;
    uint32_t reader_count;
    uint32_t sequence_start;
    uint32_t psn;        /* number of the next frame */
    uint32_t room_until; /* frames below this number fit, as far as this side knows */
    uint32_t lent_first; /* number of the oldest frame that is lent and not taken back */
    uint32_t lent_count; /* frames from that one on; all later ones are lent too */
    uint64_t payload_bytes;
    uint64_t window_bytes; /* part of the ring in use: a power of two */
    uint8_t *segment;
    uint64_t segment_bytes;
    uint64_t head;  /* free-running byte positions: end of the last frame, */
    uint64_t start; /* where the reserved frame begins, */
    uint64_t tail;  /* oldest byte that a reader may still need */
    uint64_t *ends; /* per slot: head after its frame */
    uint64_t route;
    const uint32_t *far_count; /* readers far away, or NULL: none are */
} js_stream_tx;

/* A reader's private side. */
typedef struct js_stream_rx {
    js_stream_line *lines; /* written to only where a frame in the line itself is lent */
    uint8_t *payload;
    js_stream_reader *self;
    uint32_t mask;
    uint32_t sequence_start;
    uint32_t psn; /* number expected next */
    uint64_t payload_bytes;
    uint8_t *segment;
    uint64_t segment_bytes;
    js_distance *distance; /* to the producer, or NULL: it is not learned here */
    uint32_t timed;        /* number of the last frame that voted on it, */
    uint32_t awaited;      /* and of the last that was looked for in vain while timing */
} js_stream_rx;

/* Bytes that a stream takes in the segment, a multiple of a page. */
uint64_t js_stream_bytes(const js_stream_layout *layout);
/* Is zeroed memory a fresh stream for this start? Not if zero is a number of the first lap. */
bool js_stream_start_fits(uint32_t sequence_start, uint32_t slots);
/* Opens the producer's side. ends: layout->slots words of private memory. */
void js_stream_open_tx(js_stream_tx *tx, void *memory, const js_stream_layout *layout,
                       uint64_t *ends, uint64_t route);
/* Opens the side of reader number `reader`. */
void js_stream_open_rx(js_stream_rx *rx, void *memory, const js_stream_layout *layout,
                       uint32_t reader);
/* Reads the readers' words and updates what is free. */
void js_stream_refresh(js_stream_tx *tx);
/* Changes the part of the ring that is used. False: not all frames are consumed yet. */
bool js_stream_change_window(js_stream_tx *tx, uint64_t bytes);
/* Have all readers consumed the frames before number `psn`, one that has been published? */
bool js_stream_is_consumed(const js_stream_tx *tx, uint32_t psn);
/* js_stream_peek, timed. */
js_stream_line *js_stream_peek_timed(js_stream_rx *rx);
/* Index of the reader that is furthest behind. */
uint32_t js_stream_slowest(const js_stream_tx *tx);

/* Uses only the first `bytes` of the ring, a power of two, from now on. False: not all frames are
 * consumed yet, and nothing has changed. */
JS_INLINE bool js_stream_set_window(js_stream_tx *tx, uint64_t bytes)
{
    return JS_LIKELY(tx->window_bytes == bytes) || js_stream_change_window(tx, bytes);
}

/* Room for a frame of `bytes`? Returns where its payload goes, or NULL. Payload of up to
 * JS_STREAM_INLINE_BYTES does not need this: js_stream_has_slot, then js_stream_publish_inline. */
JS_INLINE bool js_stream_has_slot(js_stream_tx *tx)
{
    if (JS_LIKELY(tx->psn != tx->room_until)) {
        return true;
    }
    js_stream_refresh(tx);
    return tx->psn != tx->room_until;
}

JS_INLINE uint8_t *js_stream_reserve(js_stream_tx *tx, uint32_t bytes)
{
    if (!js_stream_has_slot(tx)) {
        return NULL;
    }
    uint64_t at = tx->head & (tx->window_bytes - 1);
    /* Frames are contiguous: one that would cross the end of the ring starts at its beginning. */
    tx->start = at + bytes <= tx->window_bytes ? tx->head : tx->head + (tx->window_bytes - at);
    if (JS_UNLIKELY(tx->start + bytes - tx->tail > tx->window_bytes)) {
        js_stream_refresh(tx);
        if (tx->start + bytes - tx->tail > tx->window_bytes) {
            return NULL;
        }
    }
    return tx->payload + (tx->start & (tx->window_bytes - 1));
}

/* Copies a frame's payload to where js_stream_reserve said, or not through the caches: see
 * js_distance.h. Returns whether it went past them. */
JS_INLINE bool js_stream_fill(const js_stream_tx *tx, uint8_t *to, const uint8_t *from,
                              uint32_t bytes)
{
    if (JS_UNLIKELY(tx->far_count != NULL && *tx->far_count != 0) && bytes >= JS_STREAM_FAR_BYTES) {
        js_copy_streaming(to, from, bytes);
        return true;
    }
    memcpy(to, from, bytes);
    return false;
}

JS_INLINE void js_stream_commit(js_stream_tx *tx, js_stream_line *line)
{
    tx->ends[tx->psn & tx->mask] = tx->head;
    js_store_rel_u64(&line->order, tx->psn);
    tx->psn++;
}

/* Publishes the frame whose payload was written where js_stream_reserve(tx, bytes) said. */
JS_INLINE void js_stream_publish(js_stream_tx *tx, uint32_t bytes, uint64_t route, uint64_t body)
{
    js_stream_line *line = &tx->lines[tx->psn & tx->mask];
    tx->head = js_round_up(tx->start + bytes, JS_CACHE_LINE);
    line->route = route;
    line->body = body;
    line->payload.offset = tx->start & (tx->window_bytes - 1);
    js_stream_commit(tx, line);
}

/* Can these bytes be published by reference? */
JS_INLINE bool js_stream_can_refer(const js_stream_tx *tx, const void *payload, uint64_t bytes)
{
    uint64_t offset = (uint64_t)((uintptr_t)payload - (uintptr_t)tx->segment);
    return offset < tx->segment_bytes && bytes <= tx->segment_bytes - offset;
}

/* Publishes a frame whose payload stays where it is in the segment. The caller has asked
 * js_stream_has_slot, and leaves the bytes alone until the readers have released the frame. */
JS_INLINE void js_stream_publish_ref(js_stream_tx *tx, const void *payload, uint64_t route,
                                     uint64_t body)
{
    js_stream_line *line = &tx->lines[tx->psn & tx->mask];
    line->route = route | JS_STREAM_BY_REF;
    line->body = body;
    line->payload.offset = (uint64_t)((const uint8_t *)payload - tx->segment);
    js_stream_commit(tx, line);
}

/* The frame that is published next is lent. */
JS_INLINE void js_stream_lend(js_stream_tx *tx)
{
    if (tx->lent_count++ == 0) {
        tx->lent_first = tx->psn;
    }
}

/* Payload of the oldest lent frame, of `bytes` bytes, once the reader has given it back; else
 * NULL. It stays valid until js_stream_take_back. */
JS_INLINE uint8_t *js_stream_given_back(const js_stream_tx *tx, uint32_t bytes)
{
    uint32_t done = js_load_acq_u32(&tx->readers[0].consumed);
    if (tx->lent_count == 0 || (int32_t)(done - (tx->lent_first - tx->sequence_start)) <= 0) {
        return NULL;
    }
    js_stream_line *line = &tx->lines[tx->lent_first & tx->mask];
    if (bytes <= JS_STREAM_INLINE_BYTES) {
        return line->payload.bytes;
    }
    bool is_ref = (line->route & JS_STREAM_BY_REF) != 0;
    return (is_ref ? tx->segment : tx->payload) + line->payload.offset;
}

JS_INLINE void js_stream_take_back(js_stream_tx *tx)
{
    tx->lent_first++;
    tx->lent_count--;
}

/* Publishes a frame of at most JS_STREAM_INLINE_BYTES in one line. The caller has asked
 * js_stream_has_slot. */
JS_INLINE void js_stream_publish_inline(js_stream_tx *tx, const void *source, uint32_t bytes,
                                        uint64_t route, uint64_t body)
{
    js_stream_line *line = &tx->lines[tx->psn & tx->mask];
    line->route = route;
    line->body = body;
    js_copy_short(line->payload.bytes, source, bytes);
    js_stream_commit(tx, line);
}

JS_INLINE js_stream_line *js_stream_look(const js_stream_rx *rx)
{
    js_stream_line *line = &rx->lines[rx->psn & rx->mask];
    uint64_t order = js_load_acq_u64(&line->order);
    return (uint32_t)order == rx->psn ? line : NULL;
}

/* The next frame, or NULL when it has not been published yet. It stays valid until released. */
JS_INLINE js_stream_line *js_stream_peek(js_stream_rx *rx)
{
    if (JS_UNLIKELY(rx->psn - rx->timed >= JS_DISTANCE_EVERY && rx->distance != NULL)) {
        return js_stream_peek_timed(rx);
    }
    return js_stream_look(rx);
}

/* Payload of a peeked frame; NULL if the line points outside of the ring or the segment. Only
 * that of a lent frame may be written to. */
JS_INLINE uint8_t *js_stream_payload(const js_stream_rx *rx, js_stream_line *line, uint32_t bytes)
{
    if (bytes <= JS_STREAM_INLINE_BYTES) {
        return line->payload.bytes;
    }
    bool is_ref = (line->route & JS_STREAM_BY_REF) != 0;
    uint64_t room_bytes = is_ref ? rx->segment_bytes : rx->payload_bytes;
    uint64_t offset = line->payload.offset;
    if (JS_UNLIKELY(offset > room_bytes || bytes > room_bytes - offset)) {
        return NULL;
    }
    return (is_ref ? rx->segment : rx->payload) + offset;
}

/* Frees the peeked frame for the producer. */
JS_INLINE void js_stream_release(js_stream_rx *rx)
{
    rx->psn++;
    js_store_rel_u32(&rx->self->consumed, rx->psn - rx->sequence_start);
}

#endif
