/* How far a peer's core is, learned from how long it takes to see a line that the peer has written.
 *
 * Between cores that share a cache a line travels in 50 to 70 ns, between others in 140 to 300 (AMD
 * EPYC). A store to a line of which a far core holds a copy waits that long, and stores overlap
 * little: there it is faster to write past the caches, which throws the copies away, and let the
 * reader fetch the line from memory. Between near cores that is the slower way. Virtual machines
 * move their cores, so it is learned all the time: of JS_DISTANCE_EVERY frames one votes, the next
 * that was looked for before it came. */
#ifndef JS_DISTANCE_H
#define JS_DISTANCE_H

#include "js_base.h"

#define JS_DISTANCE_EVERY 32u
#define JS_DISTANCE_FAR_NS 100u
/* So many votes in a row change what is believed. */
#define JS_DISTANCE_VOTES 4u

typedef struct js_distance {
    uint32_t is_far;     /* to be read by senders */
    uint32_t votes;      /* for far: 0 .. JS_DISTANCE_VOTES */
    uint64_t far_ticks;  /* a line that takes as long comes from afar */
    uint32_t *far_count; /* of the communicator: how many peers are far */
} js_distance;

/* Nothing is known: near, unless forced. */
void js_distance_open(js_distance *distance, uint32_t *far_count);
/* A line of the peer took this long to come. */
void js_distance_vote(js_distance *distance, uint64_t ticks);
/* Is there anything to learn, or has js_cores_force said it? */
bool js_distance_is_learned(void);

#endif
