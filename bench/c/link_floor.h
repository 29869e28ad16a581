/* The floors of the links: hand-written sockets that do the least to move a frame, and nothing for
 * reliability, several peers, or frames that are not expected. */
#ifndef LINK_FLOOR_H
#define LINK_FLOOR_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    FLOOR_BATCH = 32,
    FLOOR_FRAME_BYTES_MAX = 9216
};

/* How the other end is reached; told out of band. */
typedef struct js_floor_address {
    uint8_t ip[4];
    uint16_t port;
    uint8_t mac[6];
    int32_t pid; /* shared memory: a descriptor of that process */
    int32_t fd;
} js_floor_address;

typedef struct js_floor_link js_floor_link;
struct js_floor_link {
    /* Sends `count` frames of `bytes` bytes, which lie in frame[0 .. count - 1]. */
    void (*send)(js_floor_link *floor, uint32_t bytes, uint32_t count);
    /* The next frame that has come, or NULL; it is valid until the next call. */
    const uint8_t *(*take)(js_floor_link *floor, uint32_t *bytes);
    uint8_t *frame[FLOOR_BATCH]; /* equal distances; with room for an Ethernet header before */
    js_floor_address own;
    js_floor_address peer; /* to be filled in before connect */
    void (*connect)(js_floor_link *floor);
};

static inline void link_floor_require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "links: floor: %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

js_floor_link *link_floor_shm(void);
js_floor_link *link_floor_udp(const char *ip);
js_floor_link *link_floor_packet(const char *interface);
js_floor_link *link_floor_xdp(const char *interface);

#endif
