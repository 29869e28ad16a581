/* Raw Ethernet frames of our own EtherType through a packet socket.
 *
 * Received frames lie in a ring that the kernel shares with us (TPACKET_V2), so looking for one is
 * a load and no system call. A filter in the kernel lets only frames for this endpoint through
 * (dcid and epoch of js_wire.h), so any number of endpoints share an interface. Frames leave past
 * the queueing discipline, one by send, several by one sendmmsg.
 *
 * Needs CAP_NET_RAW in the network namespace, which anyone has in a user namespace of his own. */
#include "js_atomic.h"
#include "js_link_kinds.h"
#include "js_status.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    PACKET_FRAMES_MAX = 64,    /* between flushes */
    PACKET_RING_FRAMES = 1024, /* usual; what lies in the caches is received faster */
    PACKET_RING_FRAMES_MAX = 1 << 16,
    PACKET_BLOCK_FRAMES = 64, /* of frames of whole cache lines: whole pages, so no gaps */
    PACKET_HEADER_OFFSET = 2, /* aligns what follows the Ethernet header */
    PACKET_SEND_BUFFER_BYTES = 4 << 20,
    PACKET_LOOKS = 16, /* each is a load */
};

typedef struct packet_link {
    js_link link;
    int fd;
    uint32_t peer_count;
    struct ethhdr headers[JS_LINK_PEERS_MAX];

    uint8_t *send_buffer; /* [PACKET_FRAMES_MAX] of stride_bytes */
    uint32_t stride_bytes;
    uint32_t frame_count; /* committed */
    struct mmsghdr messages[PACKET_FRAMES_MAX];
    struct iovec vectors[PACKET_FRAMES_MAX];

    uint8_t *ring;
    size_t ring_bytes;
    uint32_t ring_frames;
    uint32_t ring_frame_bytes;
    uint32_t next;       /* frame to look at, 0 .. ring_frames - 1 */
    uint32_t unreleased; /* frames before it that the caller holds */
} packet_link;

static packet_link *packet_of(js_link *link)
{
    return (packet_link *)(void *)link;
}

/* --- sending -------------------------------------------------------------------------------- */

static uint8_t *packet_slot(const packet_link *packet, uint32_t index)
{
    return packet->send_buffer + (size_t)index * packet->stride_bytes + PACKET_HEADER_OFFSET;
}

static int32_t packet_add_peer(js_link *link, const js_link_address *address, uint32_t *out_peer)
{
    packet_link *packet = packet_of(link);
    JS_TRY(js_link_ethernet_header(link, address, packet->peer_count, packet->headers));
    *out_peer = packet->peer_count++;
    return JS_OK;
}

static uint8_t *packet_begin(js_link *link, uint32_t peer)
{
    packet_link *packet = packet_of(link);
    (void)peer;
    if (packet->frame_count == PACKET_FRAMES_MAX) {
        return NULL;
    }
    return packet_slot(packet, packet->frame_count) + ETH_HLEN;
}

static void packet_commit(js_link *link, uint32_t peer, uint32_t bytes)
{
    packet_link *packet = packet_of(link);
    uint32_t index = packet->frame_count++;
    memcpy(packet_slot(packet, index), &packet->headers[peer], ETH_HLEN);
    packet->vectors[index].iov_len = ETH_HLEN + bytes;
    link->stats.frames_sent++;
    link->stats.bytes_sent += bytes;
}

/* All that was committed. After a frame that the kernel refuses go on with the next one: the reason
 * may be that one's (it is too long since the interface's MTU was lowered). */
static void packet_send_many(packet_link *packet)
{
    uint32_t sent = 0;
    while (sent < packet->frame_count) {
        packet->link.stats.system_calls++;
        int count =
            sendmmsg(packet->fd, packet->messages + sent, packet->frame_count - sent, MSG_DONTWAIT);
        if (count > 0) {
            sent += (uint32_t)count;
        } else if (errno == EAGAIN || errno == ENOBUFS) {
            packet->link.stats.send_drops += packet->frame_count - sent;
            return;
        } else {
            packet->link.stats.send_drops++;
            sent++;
        }
    }
}

static void packet_flush(js_link *link)
{
    packet_link *packet = packet_of(link);
    if (packet->frame_count == 1) {
        link->stats.system_calls++;
        const struct iovec *only = &packet->vectors[0];
        if (JS_UNLIKELY(send(packet->fd, only->iov_base, only->iov_len, MSG_DONTWAIT) < 0)) {
            link->stats.send_drops++;
        }
    } else {
        packet_send_many(packet);
    }
    packet->frame_count = 0;
}

/* --- receiving ------------------------------------------------------------------------------ */

static struct tpacket2_hdr *packet_ring_frame(const packet_link *packet, uint32_t index)
{
    return (struct tpacket2_hdr *)(void *)(packet->ring + (size_t)index * packet->ring_frame_bytes);
}

static uint32_t packet_receive(js_link *link, js_link_packet *packets, uint32_t max)
{
    packet_link *packet = packet_of(link);
    uint32_t count = 0;
    /* One frame is never taken before all are released: the kernel's next one is then told from the
     * oldest that is held. */
    while (count < max && packet->unreleased < packet->ring_frames) {
        const struct tpacket2_hdr *header = packet_ring_frame(packet, packet->next);
        uint32_t status = js_load_acq_u32(&header->tp_status);
        if ((status & TP_STATUS_USER) == 0) {
            /* The kernel writes the frame before the status: it may be here by then. */
            __builtin_prefetch((const uint8_t *)header + JS_CACHE_LINE);
            __builtin_prefetch((const uint8_t *)header + 2 * (size_t)JS_CACHE_LINE);
            break;
        }
        packet->next = packet->next + 1 == packet->ring_frames ? 0 : packet->next + 1;
        packet->unreleased++;
        if (header->tp_snaplen < ETH_HLEN || header->tp_snaplen != header->tp_len) {
            continue; /* cut: longer than any frame of ours */
        }
        const uint8_t *frame = (const uint8_t *)header + header->tp_mac + ETH_HLEN;
        uint32_t bytes = header->tp_snaplen - ETH_HLEN;
        packets[count++] = (js_link_packet){ .frame = frame, .bytes = bytes };
        link->stats.bytes_received += bytes;
    }
    link->stats.frames_received += count;
    return count;
}

static void packet_release(js_link *link)
{
    packet_link *packet = packet_of(link);
    uint32_t index = packet->next >= packet->unreleased
                         ? packet->next - packet->unreleased
                         : packet->next + packet->ring_frames - packet->unreleased;
    for (; packet->unreleased > 0; packet->unreleased--) {
        js_store_rel_u32(&packet_ring_frame(packet, index)->tp_status, TP_STATUS_KERNEL);
        index = index + 1 == packet->ring_frames ? 0 : index + 1;
    }
}

static int32_t packet_wait_fd(js_link *link)
{
    return packet_of(link)->fd;
}

static void packet_update(js_link *link)
{
    struct tpacket_stats stats = { 0 };
    socklen_t length = sizeof(stats);
    if (getsockopt(packet_of(link)->fd, SOL_PACKET, PACKET_STATISTICS, &stats, &length) == 0) {
        link->stats.receive_drops += stats.tp_drops; /* reading sets it to zero */
    }
}

/* --- opening and closing -------------------------------------------------------------------- */

static void packet_close(js_link *link)
{
    packet_link *packet = packet_of(link);
    if (packet->ring != NULL) {
        munmap(packet->ring, packet->ring_bytes);
    }
    if (packet->fd >= 0) {
        close(packet->fd);
    }
    free(packet->send_buffer);
    free(packet);
}

static const js_link_ops packet_ops = {
    .name = "packet",
    .add_peer = packet_add_peer,
    .begin = packet_begin,
    .commit = packet_commit,
    .flush = packet_flush,
    .receive = packet_receive,
    .release = packet_release,
    .wait_fd = packet_wait_fd,
    .update = packet_update,
    .close = packet_close,
};

/* Only frames to this endpoint, and none that are longer than its own. dcid and epoch are little
 * endian; the filter compares big endian. */
static int32_t packet_set_filter(const packet_link *packet)
{
    const js_link_address *own = &packet->link.address;
    uint32_t dcid_high = own->dcid >> 8;
    uint32_t epoch = (uint32_t)(own->epoch & 0xff) << 8 | own->epoch >> 8;
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, ETH_HLEN + packet->link.mtu_bytes, 5, 0),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, ETH_HLEN + 5),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, dcid_high, 0, 3),
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, ETH_HLEN + 6),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, epoch, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog filter = { .len = JS_ARRAY_LEN(program), .filter = program };
    if (setsockopt(packet->fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) != 0) {
        return JS_FAIL_SYS("link packet: filter for %s", own->interface);
    }
    return JS_OK;
}

static int32_t packet_map_ring(packet_link *packet, uint32_t frames)
{
    const char *interface = packet->link.address.interface;
    int version = TPACKET_V2;
    if (setsockopt(packet->fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) != 0) {
        return JS_FAIL_SYS("link packet: TPACKET_V2 on %s", interface);
    }
    /* The kernel's header, its address, up to 16 bytes for the Ethernet header, then ours. */
    uint64_t header_bytes = js_round_up(sizeof(struct tpacket2_hdr), TPACKET_ALIGNMENT) +
                            sizeof(struct sockaddr_ll) + 2 * TPACKET_ALIGNMENT;
    packet->ring_frame_bytes =
        (uint32_t)js_round_up(header_bytes + packet->link.mtu_bytes, JS_CACHE_LINE);
    uint32_t blocks = (frames + PACKET_BLOCK_FRAMES - 1) / PACKET_BLOCK_FRAMES;
    struct tpacket_req request = { .tp_block_size = packet->ring_frame_bytes * PACKET_BLOCK_FRAMES,
                                   .tp_block_nr = blocks,
                                   .tp_frame_size = packet->ring_frame_bytes,
                                   .tp_frame_nr = blocks * PACKET_BLOCK_FRAMES };
    packet->ring_frames = request.tp_frame_nr;
    packet->ring_bytes = (size_t)blocks * request.tp_block_size;
    if (setsockopt(packet->fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)) != 0) {
        return JS_FAIL_SYS("link packet: ring of %u frames of %u bytes on %s", packet->ring_frames,
                           packet->ring_frame_bytes, interface);
    }
    void *ring = mmap(NULL, packet->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                      packet->fd, 0);
    if (ring == MAP_FAILED) {
        return JS_FAIL_SYS("link packet: mapping the ring on %s", interface);
    }
    packet->ring = ring;
    packet->link.buffer_frames = packet->ring_frames;
    packet->link.looks = PACKET_LOOKS;
    return JS_OK;
}

static int32_t packet_allocate(packet_link *packet)
{
    packet->stride_bytes = (uint32_t)js_round_up(
        PACKET_HEADER_OFFSET + ETH_HLEN + packet->link.mtu_bytes, JS_CACHE_LINE);
    size_t bytes = js_round_up((size_t)PACKET_FRAMES_MAX * packet->stride_bytes, 4096);
    packet->send_buffer = aligned_alloc(4096, bytes);
    if (packet->send_buffer == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "link packet: no memory for its frames");
    }
    memset(packet->send_buffer, 0, bytes); /* no page is missing later */
    for (uint32_t i = 0; i < PACKET_FRAMES_MAX; i++) {
        packet->vectors[i].iov_base = packet_slot(packet, i);
        packet->messages[i].msg_hdr.msg_iov = &packet->vectors[i];
        packet->messages[i].msg_hdr.msg_iovlen = 1;
    }
    return JS_OK;
}

/* Filter and ring come before binding, so that nothing foreign is ever in the ring. */
static int32_t packet_open_socket(packet_link *packet, const js_link_config *config, int index)
{
    const js_link_address *own = &packet->link.address;
    int on = 1;
    packet->fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (packet->fd < 0 && errno == EPERM) {
        return JS_FAIL_SYS("link packet: raw frames on %s need CAP_NET_RAW in its namespace",
                           own->interface);
    }
    if (packet->fd < 0) {
        return JS_FAIL_SYS("link packet: packet socket for %s", own->interface);
    }
    JS_TRY(packet_set_filter(packet));
    uint32_t frames = config->buffer_frames != 0 ? config->buffer_frames : PACKET_RING_FRAMES;
    JS_TRY(packet_map_ring(packet, (uint32_t)js_min_u64(frames, PACKET_RING_FRAMES_MAX)));
    /* Neither is missed where the kernel is too old for it: own frames do not pass the filter. */
    (void)setsockopt(packet->fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on));
    (void)setsockopt(packet->fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on));
    (void)js_link_set_buffer(packet->fd, SO_SNDBUF, PACKET_SEND_BUFFER_BYTES);
    struct sockaddr_ll address = { .sll_family = AF_PACKET,
                                   .sll_protocol = htons(own->ethertype),
                                   .sll_ifindex = index };
    if (bind(packet->fd, (const struct sockaddr *)(const void *)&address, sizeof(address)) != 0) {
        return JS_FAIL_SYS("link packet: cannot bind EtherType 0x%04x on %s", own->ethertype,
                           own->interface);
    }
    return JS_OK;
}

static int32_t packet_setup(packet_link *packet, const js_link_config *config)
{
    js_link_interface interface;
    js_link *link = &packet->link;
    JS_TRY(js_link_ethernet_address(config, &interface, &link->address, &link->mtu_bytes));
    JS_TRY(packet_allocate(packet));
    JS_TRY(packet_open_socket(packet, config, interface.index));
    js_link_ethernet_name(link);
    return JS_OK;
}

int32_t js_link_packet_open(const js_link_config *config, const js_link_address *identity,
                            js_link **out)
{
    packet_link *packet = calloc(1, sizeof(*packet));
    if (packet == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "link packet: no memory");
    }
    packet->link.ops = &packet_ops;
    packet->link.address = *identity;
    packet->fd = -1;
    int32_t result = packet_setup(packet, config);
    if (result != JS_OK) {
        packet_close(&packet->link);
        return result;
    }
    *out = &packet->link;
    return JS_OK;
}
