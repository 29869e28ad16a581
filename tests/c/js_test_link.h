/* What the tests of links share: endpoints that know each other, frames sent and awaited. */
#ifndef JS_TEST_LINK_H
#define JS_TEST_LINK_H

#include "js_clock.h"
#include "js_link.h"
#include "js_test.h"

#include <poll.h>

#define JS_TEST_LINK_WAIT_NS 30000000000u

/* Two endpoints, each of which is peer 0 of the other, or what it is told. */
typedef struct js_test_pair {
    js_link *link[2];
    uint32_t peer[2]; /* the other one, as link[i] knows it */
} js_test_pair;

static inline void js_test_pair_open(js_test_pair *pair, const js_link_config *first,
                                     const js_link_config *second)
{
    const js_link_config *configs[2] = { first, second };
    js_link_address addresses[2];
    for (uint32_t i = 0; i < 2; i++) {
        if (js_link_open(configs[i], &pair->link[i]) != JS_OK) {
            fprintf(stderr, "%s\n", js_last_error()->text);
            exit(JS_TEST_EXIT_FAIL);
        }
        js_link_get_address(pair->link[i], &addresses[i]);
    }
    for (uint32_t i = 0; i < 2; i++) {
        JS_TEST_EQ_I64(js_link_add_peer(pair->link[i], &addresses[1 - i], &pair->peer[i]), JS_OK);
    }
}

static inline void js_test_pair_close(js_test_pair *pair)
{
    js_link_close(pair->link[0]);
    js_link_close(pair->link[1]);
}

/* Fills a frame so that its bytes tell its number and, for links that filter, its receiver. */
static inline void js_test_frame_fill(uint8_t *frame, uint32_t bytes, uint32_t number,
                                      const js_link_address *to)
{
    for (uint32_t i = 0; i < bytes; i++) {
        frame[i] = (uint8_t)((number ^ number >> 8 ^ number >> 16 ^ number >> 24) * 31 + i);
    }
    if (bytes >= 16) {
        memcpy(frame + 4, &to->dcid, 2);
        memcpy(frame + 6, &to->epoch, 2);
        memcpy(frame + 8, &number, 4);
    }
}

static inline bool js_test_frame_is(const js_link_packet *packet, uint32_t bytes, uint32_t number,
                                    const js_link_address *to)
{
    uint8_t want[65536];
    js_test_frame_fill(want, bytes, number, to);
    return packet->bytes >= bytes && memcmp(packet->frame, want, bytes) == 0;
}

/* Puts a frame into the next flush; false: no room. */
static inline bool js_test_send(js_test_pair *pair, uint32_t from, uint32_t bytes, uint32_t number)
{
    js_link_address to;
    uint8_t *frame = js_link_begin(pair->link[from], pair->peer[from]);
    if (frame == NULL) {
        return false;
    }
    js_link_get_address(pair->link[1 - from], &to);
    js_test_frame_fill(frame, bytes, number, &to);
    js_link_commit(pair->link[from], pair->peer[from], bytes);
    return true;
}

/* Waits for at least one frame; 0 when none came in time. */
static inline uint32_t js_test_await(js_link *link, js_link_packet *packets, uint32_t max)
{
    uint64_t until = js_clock_ns() + JS_TEST_LINK_WAIT_NS;
    for (;;) {
        uint32_t count = js_link_receive(link, packets, max);
        if (count > 0 || js_clock_ns() > until) {
            return count;
        }
        struct pollfd readable = { .fd = js_link_wait_fd(link), .events = POLLIN };
        (void)poll(&readable, 1, 10);
    }
}

#endif
