/* A link: moves frames between this endpoint and those of other hosts, as they are; it may lose,
 * repeat and reorder them. One endpoint serves one communicator of one rank, so no two threads use
 * it at a time; demultiplexing among peers is done by the frames' dcid, not here.
 *
 *   js_link_packet.c  raw Ethernet frames of our own EtherType, through a ring (TPACKET_V2)
 *   js_link_xdp.c     the same bytes through AF_XDP, for real adapters
 *   js_link_udp.c     the same bytes as datagrams
 *   js_link_rails.c   several of them as one
 *   js_link_fault.c   around any of them: drops, repeats, reorders, corrupts, delays, by a seed
 *   js_link_trace.c   around any of them: writes what passes to a pcapng file
 *
 * Nothing is allocated after opening; sending and receiving cost system calls only where the kind
 * of link has no way around them. */
#ifndef JS_LINK_H
#define JS_LINK_H

#include "js_base.h"

#include <jetstream/js_api.h>

#define JS_LINK_PEERS_MAX 256u
#define JS_LINK_MTU_BYTES_MIN 512u /* a control frame and its note fit any link */
#define JS_LINK_NAME_BYTES 128u

typedef struct js_link_packet {
    const uint8_t *frame;
    uint32_t bytes; /* may include padding behind the frame */
} js_link_packet;

/* Filled in by whoever implements the link. */
typedef struct js_link_ops {
    const char *name;
    int32_t (*add_peer)(js_link *link, const js_link_address *address, uint32_t *out_peer);
    uint8_t *(*begin)(js_link *link, uint32_t peer);
    void (*commit)(js_link *link, uint32_t peer, uint32_t bytes);
    void (*flush)(js_link *link);
    uint32_t (*receive)(js_link *link, js_link_packet *packets, uint32_t max);
    void (*release)(js_link *link);
    int32_t (*wait_fd)(js_link *link);
    void (*update)(js_link *link); /* takes over what the kernel has counted; may be NULL */
    void (*close)(js_link *link);  /* frees it, too; a decorator closes what it wraps */
} js_link_ops;

/* The part that all links have in common: the first member of each. */
struct js_link {
    const js_link_ops *ops;
    js_link_address address; /* of this end */
    uint32_t mtu_bytes;      /* largest frame */
    uint32_t buffer_frames;  /* frames that the receiving side holds while nobody looks */
    uint32_t looks;          /* in vain, that cost no more than a round of the engine; 0: one */
    uint32_t rails;          /* ways to each peer; 1 but for js_link_rails.c */
    js_link_stats stats;
    js_link *inner; /* what a decorator wraps, which has the stats; NULL */
    char name[JS_LINK_NAME_BYTES];
};

/* What an interface's MTU counts beside a frame: headers of IP and UDP. */
JS_INLINE uint32_t js_link_header_bytes(const js_link_address *address)
{
    return address->kind != JS_LINK_UDP ? 0 : address->is_ipv6 ? 48 : 28;
}

/* Says where frames for a peer go, an address for each rail; its number is what the other calls
 * want, with the number of the rail added to it. */
JS_INLINE int32_t js_link_add_peer(js_link *link, const js_link_address *address,
                                   uint32_t *out_peer)
{
    return link->ops->add_peer(link, address, out_peer);
}

/* Memory for the next frame, of mtu_bytes; NULL: there is no room before the next flush. */
JS_INLINE uint8_t *js_link_begin(js_link *link, uint32_t peer)
{
    return link->ops->begin(link, peer);
}

/* The frame begun last has so many bytes and may go. */
JS_INLINE void js_link_commit(js_link *link, uint32_t peer, uint32_t bytes)
{
    link->ops->commit(link, peer, bytes);
}

/* Everything committed goes now. What the kernel does not take is dropped and counted. */
JS_INLINE void js_link_flush(js_link *link)
{
    link->ops->flush(link);
}

/* Frames that have come, at most `max`; they stay valid until released. Never blocks. */
JS_INLINE uint32_t js_link_receive(js_link *link, js_link_packet *packets, uint32_t max)
{
    return link->ops->receive(link, packets, max);
}

/* All frames received so far may be overwritten. */
JS_INLINE void js_link_release(js_link *link)
{
    link->ops->release(link);
}

/* The link behind a rail, of any link; NULL: there is none. Still the whole link's. */
js_link *js_link_get_rail(js_link *link, uint32_t rail);

/* Readable when frames have come. */
JS_INLINE int32_t js_link_wait_fd(js_link *link)
{
    return link->ops->wait_fd(link);
}

#endif
