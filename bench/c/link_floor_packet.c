/* The floor of the link packet: a packet socket, a ring for receiving, send or sendmmsg. */
#include "link_floor.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/ioctl.h>

enum {
    PACKET_TYPE = 0x88b6, /* not that of the link beside it */
    PACKET_RING_FRAMES = 1024,
    PACKET_RING_FRAME_BYTES = 9216,
    PACKET_BLOCK_BYTES = 9216 * 4,
};

typedef struct {
    js_floor_link floor;
    int fd;
    uint8_t *ring;
    uint32_t next;
    bool holds; /* the frame before `next` */
    struct mmsghdr messages[FLOOR_BATCH];
    struct iovec vectors[FLOOR_BATCH];
} floor_packet;

static struct tpacket2_hdr *packet_frame(floor_packet *packet, uint32_t index)
{
    size_t offset = (size_t)(index % PACKET_RING_FRAMES) * PACKET_RING_FRAME_BYTES;
    return (struct tpacket2_hdr *)(void *)(packet->ring + offset);
}

static void floor_packet_send(js_floor_link *floor, uint32_t bytes, uint32_t count)
{
    floor_packet *packet = (floor_packet *)floor;
    if (count == 1) {
        (void)send(packet->fd, floor->frame[0] - ETH_HLEN, ETH_HLEN + bytes, 0);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        packet->vectors[i].iov_len = ETH_HLEN + bytes;
    }
    (void)sendmmsg(packet->fd, packet->messages, count, 0);
}

static const uint8_t *floor_packet_take(js_floor_link *floor, uint32_t *bytes)
{
    floor_packet *packet = (floor_packet *)floor;
    if (packet->holds) {
        __atomic_store_n(&packet_frame(packet, packet->next - 1)->tp_status, TP_STATUS_KERNEL,
                         __ATOMIC_RELEASE);
        packet->holds = false;
    }
    struct tpacket2_hdr *header = packet_frame(packet, packet->next);
    if ((__atomic_load_n(&header->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER) == 0) {
        return NULL;
    }
    packet->next++;
    packet->holds = true;
    *bytes = header->tp_snaplen - ETH_HLEN;
    return (const uint8_t *)header + header->tp_mac + ETH_HLEN;
}

static void floor_packet_connect(js_floor_link *floor)
{
    struct ethhdr header = { .h_proto = htons(PACKET_TYPE) };
    memcpy(header.h_dest, floor->peer.mac, ETH_ALEN);
    memcpy(header.h_source, floor->own.mac, ETH_ALEN);
    for (uint32_t i = 0; i < FLOOR_BATCH; i++) {
        memcpy(floor->frame[i] - ETH_HLEN, &header, ETH_HLEN);
    }
}

js_floor_link *link_floor_packet(const char *interface)
{
    floor_packet *packet = calloc(1, sizeof(*packet));
    struct ifreq request = { 0 };
    int version = TPACKET_V2;
    int on = 1;
    struct tpacket_req ring = { .tp_block_size = PACKET_BLOCK_BYTES,
                                .tp_frame_size = PACKET_RING_FRAME_BYTES,
                                .tp_block_nr = PACKET_RING_FRAMES / 4,
                                .tp_frame_nr = PACKET_RING_FRAMES };
    packet->fd = socket(AF_PACKET, SOCK_RAW, 0);
    link_floor_require(packet->fd >= 0, "packet socket");
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", interface);
    link_floor_require(ioctl(packet->fd, SIOCGIFHWADDR, &request) == 0, interface);
    memcpy(packet->floor.own.mac, request.ifr_hwaddr.sa_data, ETH_ALEN);
    setsockopt(packet->fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version));
    link_floor_require(setsockopt(packet->fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)) == 0,
                       "ring");
    packet->ring = mmap(NULL, (size_t)PACKET_RING_FRAMES * PACKET_RING_FRAME_BYTES,
                        PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, packet->fd, 0);
    link_floor_require(packet->ring != MAP_FAILED, "mmap");
    setsockopt(packet->fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on));
    setsockopt(packet->fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on));
    struct sockaddr_ll address = { .sll_family = AF_PACKET,
                                   .sll_protocol = htons(PACKET_TYPE),
                                   .sll_ifindex = (int)if_nametoindex(interface) };
    link_floor_require(bind(packet->fd, (struct sockaddr *)&address, sizeof(address)) == 0, "bind");
    uint8_t *frames = aligned_alloc(4096, (size_t)FLOOR_BATCH * FLOOR_FRAME_BYTES_MAX);
    memset(frames, 0, (size_t)FLOOR_BATCH * FLOOR_FRAME_BYTES_MAX);
    for (uint32_t i = 0; i < FLOOR_BATCH; i++) {
        packet->floor.frame[i] = frames + (size_t)i * FLOOR_FRAME_BYTES_MAX + 16;
        packet->vectors[i].iov_base = packet->floor.frame[i] - ETH_HLEN;
        packet->messages[i].msg_hdr.msg_iov = &packet->vectors[i];
        packet->messages[i].msg_hdr.msg_iovlen = 1;
    }
    packet->floor.send = floor_packet_send;
    packet->floor.take = floor_packet_take;
    packet->floor.connect = floor_packet_connect;
    return &packet->floor;
}
