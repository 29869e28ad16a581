/* Raw Ethernet frames through AF_XDP: the rings and the memory of frames are shared with the
 * driver, where it can (zero copy), or with the kernel right behind it.
 *
 * The frames are the same as those of the link packet, which may be at the other end. The link has
 * queue 0 of the interface for itself, so there is one per interface; any number of packet links
 * stand beside it, for other ranks and communicators. On virtual Ethernet packet is
 * faster as well. Needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF of the host. */
#include "js_atomic.h"
#include "js_link_kinds.h"
#include "js_link_xdp_program.h"
#include "js_status.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_xdp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    XDP_RECEIVE_FRAMES = 1024,
    XDP_LOOKS = 16, /* each is a load */
    XDP_RECEIVE_FRAMES_MAX = 1 << 16,
    XDP_SEND_FRAMES = 256,   /* not yet completed */
    XDP_KERNEL_ROOM = 256,   /* before each received frame */
    XDP_HEADER_OFFSET = 2,   /* aligns what follows the Ethernet header */
    XDP_CHUNK_BYTES = 2048,  /* of memory for a frame; twice that if one does not fit */
    XDP_SEND_CALLS_MAX = 64, /* at a flush; the kernel takes 32 frames in one at least */
    XDP_BUSY_MS = 1000,      /* a socket that was closed lets go of its queue a little later */
    XDP_BUSY_STEP_MS = 20,
    XDP_QUEUE = 0,
    XDP_SEND_BUFFER_BYTES = 4 << 20, /* where the kernel copies: for all that may be on its way */
};

/* A ring shared with the kernel; `own` is the index that this side moves, not yet stored. */
typedef struct xdp_ring {
    uint8_t *map;
    size_t map_bytes;
    uint32_t *producer;
    uint32_t *consumer;
    const uint32_t *flags;
    void *entries;
    uint32_t mask;
    uint32_t own;
} xdp_ring;

typedef struct xdp_link {
    js_link link;
    int fd;
    js_link_xdp_program program;
    bool is_zero_copy;
    uint32_t peer_count;
    struct ethhdr headers[JS_LINK_PEERS_MAX];
    uint8_t *memory; /* chunks: those for receiving, then those for sending */
    size_t memory_bytes;
    uint32_t chunk_bytes;
    uint32_t receive_frames;
    xdp_ring fill;
    xdp_ring completion;
    xdp_ring receive;
    xdp_ring send;
    uint32_t unreleased;
    uint32_t free_count;
    uint32_t committed;
    bool is_behind;                        /* the kernel has not taken all that was flushed */
    uint64_t free_chunks[XDP_SEND_FRAMES]; /* offsets in memory */
} xdp_link;

static xdp_link *xdp_of(js_link *link)
{
    return (xdp_link *)(void *)link;
}

static bool xdp_wants_wakeup(const xdp_ring *ring)
{
    return (js_load_rlx_u32(ring->flags) & XDP_RING_NEED_WAKEUP) != 0;
}

/* --- sending -------------------------------------------------------------------------------- */

static int32_t xdp_add_peer(js_link *link, const js_link_address *address, uint32_t *out_peer)
{
    xdp_link *xdp = xdp_of(link);
    JS_TRY(js_link_ethernet_header(link, address, xdp->peer_count, xdp->headers));
    *out_peer = xdp->peer_count++;
    return JS_OK;
}

/* Takes back chunks whose frames have left. */
static void xdp_complete(xdp_link *xdp)
{
    const uint64_t *entries = xdp->completion.entries;
    uint32_t end = js_load_acq_u32(xdp->completion.producer);
    while (xdp->completion.own != end) {
        uint64_t offset = entries[xdp->completion.own++ & xdp->completion.mask];
        xdp->free_chunks[xdp->free_count++] = offset & ~(uint64_t)(xdp->chunk_bytes - 1);
    }
    js_store_rel_u32(xdp->completion.consumer, xdp->completion.own);
}

static uint8_t *xdp_begin(js_link *link, uint32_t peer)
{
    xdp_link *xdp = xdp_of(link);
    (void)peer;
    if (xdp->free_count == 0) {
        xdp_complete(xdp);
    }
    if (xdp->free_count == 0) {
        return NULL;
    }
    return xdp->memory + xdp->free_chunks[xdp->free_count - 1] + XDP_HEADER_OFFSET + ETH_HLEN;
}

static void xdp_commit(js_link *link, uint32_t peer, uint32_t bytes)
{
    xdp_link *xdp = xdp_of(link);
    uint64_t offset = xdp->free_chunks[--xdp->free_count] + XDP_HEADER_OFFSET;
    struct xdp_desc *entries = xdp->send.entries;
    memcpy(xdp->memory + offset, &xdp->headers[peer], ETH_HLEN);
    entries[xdp->send.own++ & xdp->send.mask] =
        (struct xdp_desc){ .addr = offset, .len = ETH_HLEN + bytes };
    xdp->committed++;
    link->stats.frames_sent++;
    link->stats.bytes_sent += bytes;
}

/* Makes the kernel take what lies in the ring. */
static void xdp_kick(xdp_link *xdp)
{
    js_link *link = &xdp->link;
    for (uint32_t call = 0; call < XDP_SEND_CALLS_MAX && xdp_wants_wakeup(&xdp->send); call++) {
        link->stats.system_calls++;
        ssize_t sent = sendto(xdp->fd, NULL, 0, MSG_DONTWAIT, NULL, 0);
        if (sent < 0 && errno != EAGAIN && errno != EBUSY && errno != ENOBUFS) {
            link->stats.send_drops++; /* the interface is down */
            xdp->is_behind = false;
            return;
        }
        if (js_load_acq_u32(xdp->send.consumer) == xdp->send.own) {
            break;
        }
    }
    xdp->is_behind = js_load_acq_u32(xdp->send.consumer) != xdp->send.own;
}

static void xdp_flush(js_link *link)
{
    xdp_link *xdp = xdp_of(link);
    if (xdp->committed == 0) {
        return;
    }
    js_store_rel_u32(xdp->send.producer, xdp->send.own);
    xdp->committed = 0;
    xdp_kick(xdp);
    xdp_complete(xdp);
}

/* --- receiving ------------------------------------------------------------------------------ */

static uint32_t xdp_receive(js_link *link, js_link_packet *packets, uint32_t max)
{
    xdp_link *xdp = xdp_of(link);
    const struct xdp_desc *entries = xdp->receive.entries;
    uint32_t end = js_load_acq_u32(xdp->receive.producer);
    uint32_t first = xdp->receive.own + xdp->unreleased;
    uint32_t count = 0;
    if (JS_UNLIKELY(xdp->is_behind)) {
        xdp_kick(xdp); /* nothing else may be sent for long */
    }
    for (; first != end && count < max; first++) {
        const struct xdp_desc *entry = &entries[first & xdp->receive.mask];
        xdp->unreleased++;
        if (entry->len <= ETH_HLEN) {
            continue;
        }
        uint32_t bytes = entry->len - ETH_HLEN;
        packets[count++] =
            (js_link_packet){ .frame = xdp->memory + entry->addr + ETH_HLEN, .bytes = bytes };
        link->stats.bytes_received += bytes;
    }
    link->stats.frames_received += count;
    return count;
}

/* Gives the chunks of received frames back to be filled. There is room: the ring has as many
 * entries as there are such chunks. */
static void xdp_release(js_link *link)
{
    xdp_link *xdp = xdp_of(link);
    const struct xdp_desc *entries = xdp->receive.entries;
    uint64_t *fill = xdp->fill.entries;
    if (xdp->unreleased == 0) {
        return;
    }
    for (; xdp->unreleased > 0; xdp->unreleased--) {
        uint64_t offset = entries[xdp->receive.own++ & xdp->receive.mask].addr;
        fill[xdp->fill.own++ & xdp->fill.mask] = offset & ~(uint64_t)(xdp->chunk_bytes - 1);
    }
    js_store_rel_u32(xdp->receive.consumer, xdp->receive.own);
    js_store_rel_u32(xdp->fill.producer, xdp->fill.own);
    if (xdp_wants_wakeup(&xdp->fill)) {
        link->stats.system_calls++;
        (void)recvfrom(xdp->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    }
}

static int32_t xdp_wait_fd(js_link *link)
{
    xdp_link *xdp = xdp_of(link);
    if (JS_UNLIKELY(xdp->is_behind)) {
        xdp_kick(xdp); /* whoever sleeps sends nothing that would */
    }
    return xdp->fd;
}

static void xdp_update(js_link *link)
{
    struct xdp_statistics stats = { 0 };
    socklen_t length = sizeof(stats);
    if (getsockopt(xdp_of(link)->fd, SOL_XDP, XDP_STATISTICS, &stats, &length) == 0) {
        link->stats.receive_drops =
            stats.rx_dropped + stats.rx_ring_full + stats.rx_fill_ring_empty_descs;
    }
}

/* --- opening and closing -------------------------------------------------------------------- */

static void xdp_close(js_link *link)
{
    xdp_link *xdp = xdp_of(link);
    xdp_ring *rings[] = { &xdp->fill, &xdp->completion, &xdp->receive, &xdp->send };
    js_link_xdp_unload(&xdp->program); /* first: nothing comes any more */
    for (size_t i = 0; i < JS_ARRAY_LEN(rings); i++) {
        if (rings[i]->map != NULL) {
            munmap(rings[i]->map, rings[i]->map_bytes);
        }
    }
    if (xdp->fd >= 0) {
        close(xdp->fd);
    }
    if (xdp->memory != NULL) {
        munmap(xdp->memory, xdp->memory_bytes);
    }
    free(xdp);
}

static const js_link_ops xdp_ops = {
    .name = "xdp",
    .add_peer = xdp_add_peer,
    .begin = xdp_begin,
    .commit = xdp_commit,
    .flush = xdp_flush,
    .receive = xdp_receive,
    .release = xdp_release,
    .wait_fd = xdp_wait_fd,
    .update = xdp_update,
    .close = xdp_close,
};

static int32_t xdp_register_memory(xdp_link *xdp)
{
    const char *interface = xdp->link.address.interface;
    uint32_t chunks = xdp->receive_frames + XDP_SEND_FRAMES;
    xdp->memory_bytes = (size_t)chunks * xdp->chunk_bytes;
    void *memory = mmap(NULL, xdp->memory_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "link xdp: no memory for %u frames on %s", chunks,
                       interface);
    }
    xdp->memory = memory;
    struct xdp_umem_reg area = { .addr = (uintptr_t)memory,
                                 .len = xdp->memory_bytes,
                                 .chunk_size = xdp->chunk_bytes,
                                 .headroom = XDP_HEADER_OFFSET };
    if (setsockopt(xdp->fd, SOL_XDP, XDP_UMEM_REG, &area, sizeof(area)) != 0) {
        return JS_FAIL_SYS("link xdp: %zu bytes of locked memory for frames on %s (ulimit -l)",
                           xdp->memory_bytes, interface);
    }
    return JS_OK;
}

/* Makes one of the four rings and maps it. */
static int32_t xdp_map_ring(xdp_link *xdp, xdp_ring *ring, int option, uint32_t entries)
{
    static const struct {
        int option;
        uint64_t page;
        size_t offsets; /* in struct xdp_mmap_offsets */
        size_t entry_bytes;
    } kinds[] = {
        { XDP_RX_RING, XDP_PGOFF_RX_RING, offsetof(struct xdp_mmap_offsets, rx),
          sizeof(struct xdp_desc) },
        { XDP_TX_RING, XDP_PGOFF_TX_RING, offsetof(struct xdp_mmap_offsets, tx),
          sizeof(struct xdp_desc) },
        { XDP_UMEM_FILL_RING, XDP_UMEM_PGOFF_FILL_RING, offsetof(struct xdp_mmap_offsets, fr),
          sizeof(uint64_t) },
        { XDP_UMEM_COMPLETION_RING, XDP_UMEM_PGOFF_COMPLETION_RING,
          offsetof(struct xdp_mmap_offsets, cr), sizeof(uint64_t) },
    };
    uint32_t kind = 0;
    while (kinds[kind].option != option) {
        kind++;
    }
    struct xdp_mmap_offsets all;
    struct xdp_ring_offset offset;
    socklen_t length = sizeof(all);
    if (setsockopt(xdp->fd, SOL_XDP, option, &entries, sizeof(entries)) != 0 ||
        getsockopt(xdp->fd, SOL_XDP, XDP_MMAP_OFFSETS, &all, &length) != 0) {
        return JS_FAIL_SYS("link xdp: ring of %u frames on %s", entries,
                           xdp->link.address.interface);
    }
    memcpy(&offset, (const uint8_t *)&all + kinds[kind].offsets, sizeof(offset));
    size_t bytes = offset.desc + entries * kinds[kind].entry_bytes;
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, xdp->fd,
                     (off_t)kinds[kind].page);
    if (map == MAP_FAILED) {
        return JS_FAIL_SYS("link xdp: mapping a ring on %s", xdp->link.address.interface);
    }
    ring->map = map;
    ring->map_bytes = bytes;
    ring->producer = (uint32_t *)(void *)(ring->map + offset.producer);
    ring->consumer = (uint32_t *)(void *)(ring->map + offset.consumer);
    ring->flags = (const uint32_t *)(const void *)(ring->map + offset.flags);
    ring->entries = ring->map + offset.desc;
    ring->mask = entries - 1;
    return JS_OK;
}

static int32_t xdp_map_rings(xdp_link *xdp)
{
    JS_TRY(xdp_map_ring(xdp, &xdp->fill, XDP_UMEM_FILL_RING, xdp->receive_frames));
    JS_TRY(xdp_map_ring(xdp, &xdp->completion, XDP_UMEM_COMPLETION_RING, XDP_SEND_FRAMES));
    JS_TRY(xdp_map_ring(xdp, &xdp->receive, XDP_RX_RING, xdp->receive_frames));
    JS_TRY(xdp_map_ring(xdp, &xdp->send, XDP_TX_RING, XDP_SEND_FRAMES));
    uint64_t *fill = xdp->fill.entries;
    for (uint32_t i = 0; i < xdp->receive_frames; i++) {
        fill[xdp->fill.own++] = (uint64_t)i * xdp->chunk_bytes;
    }
    js_store_rel_u32(xdp->fill.producer, xdp->fill.own);
    for (uint32_t i = 0; i < XDP_SEND_FRAMES; i++) {
        xdp->free_chunks[xdp->free_count++] =
            (uint64_t)(xdp->receive_frames + i) * xdp->chunk_bytes;
    }
    return JS_OK;
}

/* Zero copy if the driver can, else with a copy. */
static int32_t xdp_bind(xdp_link *xdp, int32_t interface)
{
    struct sockaddr_xdp address = { .sxdp_family = AF_XDP,
                                    .sxdp_ifindex = (uint32_t)interface,
                                    .sxdp_queue_id = XDP_QUEUE };
    for (uint32_t waited_ms = 0;; waited_ms += XDP_BUSY_STEP_MS) {
        static const uint16_t modes[] = { XDP_ZEROCOPY, XDP_COPY };
        for (size_t i = xdp->program.is_native ? 0 : 1; i < JS_ARRAY_LEN(modes); i++) {
            address.sxdp_flags = modes[i] | XDP_USE_NEED_WAKEUP;
            if (bind(xdp->fd, (const struct sockaddr *)(const void *)&address, sizeof(address)) ==
                0) {
                xdp->is_zero_copy = modes[i] == XDP_ZEROCOPY;
                return JS_OK;
            }
        }
        if (errno != EBUSY || waited_ms >= XDP_BUSY_MS) {
            return JS_FAIL_SYS("link xdp: cannot bind queue %d of %s", XDP_QUEUE,
                               xdp->link.address.interface);
        }
        struct timespec step = { .tv_nsec = XDP_BUSY_STEP_MS * 1000000L };
        (void)nanosleep(&step, NULL);
    }
}

static int32_t xdp_setup(xdp_link *xdp, const js_link_config *config)
{
    js_link_interface interface;
    js_link *link = &xdp->link;
    uint32_t overhead = XDP_KERNEL_ROOM + XDP_HEADER_OFFSET + ETH_HLEN;
    js_link_config fitting = *config;
    uint32_t most = 2 * XDP_CHUNK_BYTES - overhead;
    int32_t mtu = js_link_interface_mtu(config->interface);
    if (config->mtu_bytes == 0 && mtu > (int32_t)most) {
        fitting.mtu_bytes = most;
    }
    JS_TRY(js_link_ethernet_address(&fitting, &interface, &link->address, &link->mtu_bytes));
    if (link->mtu_bytes > most) {
        return JS_FAIL(JS_ERR_INVALID, "link xdp: frames of %u bytes on %s; it takes %u at most",
                       link->mtu_bytes, interface.name, most);
    }
    xdp->chunk_bytes =
        link->mtu_bytes + overhead <= XDP_CHUNK_BYTES ? XDP_CHUNK_BYTES : 2 * XDP_CHUNK_BYTES;
    xdp->receive_frames = XDP_SEND_FRAMES / 4; /* the least; a power of two */
    uint32_t wanted = config->buffer_frames != 0 ? config->buffer_frames : XDP_RECEIVE_FRAMES;
    while (xdp->receive_frames < wanted && xdp->receive_frames < XDP_RECEIVE_FRAMES_MAX) {
        xdp->receive_frames *= 2;
    }
    link->buffer_frames = xdp->receive_frames;
    link->looks = XDP_LOOKS;
    xdp->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (xdp->fd < 0) {
        return JS_FAIL_SYS("link xdp: XDP socket for %s (CAP_NET_RAW is needed)", interface.name);
    }
    (void)js_link_set_buffer(xdp->fd, SO_SNDBUF, XDP_SEND_BUFFER_BYTES);
    JS_TRY(xdp_register_memory(xdp));
    JS_TRY(xdp_map_rings(xdp));
    JS_TRY(js_link_xdp_load(&xdp->program, &interface, &link->address));
    JS_TRY(xdp_bind(xdp, interface.index));
    JS_TRY(js_link_xdp_direct(&xdp->program, XDP_QUEUE, xdp->fd));
    js_link_ethernet_name(link);
    return JS_OK;
}

int32_t js_link_xdp_open(const js_link_config *config, const js_link_address *identity,
                         js_link **out)
{
    xdp_link *xdp = calloc(1, sizeof(*xdp));
    if (xdp == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "link xdp: no memory");
    }
    xdp->link.ops = &xdp_ops;
    xdp->link.address = *identity;
    xdp->fd = -1;
    xdp->program = (js_link_xdp_program){ .map_fd = -1, .program_fd = -1, .attach_fd = -1 };
    int32_t result = xdp_setup(xdp, config);
    if (result != JS_OK) {
        xdp_close(&xdp->link);
        return result;
    }
    *out = &xdp->link;
    return JS_OK;
}
