/* The floor of the link udp: one connected socket; segmentation offload for more than one frame. */
#include "link_floor.h"

#include <arpa/inet.h>
#include <netinet/udp.h>

enum {
    UDP_RECEIVE_BYTES = 1 << 16,
    UDP_BUFFER_BYTES = 8 << 20,
    UDP_CALL_BYTES = 60000
};

typedef struct {
    js_floor_link floor;
    int fd;
    uint8_t *frames; /* contiguous when used for segments of `stride` bytes */
    uint8_t received[UDP_RECEIVE_BYTES];
    uint32_t received_bytes;
    uint32_t segment_bytes;
    uint32_t at;
    bool gro;
} floor_udp;

static void udp_send_segments(floor_udp *udp, const uint8_t *data, uint32_t bytes, uint32_t count)
{
    _Alignas(8) uint8_t control[CMSG_SPACE(sizeof(uint16_t))] = { 0 };
    uint16_t segment_bytes = (uint16_t)bytes;
    struct iovec vector = { (void *)(uintptr_t)data, (size_t)bytes * count };
    struct msghdr message = { .msg_iov = &vector,
                              .msg_iovlen = 1,
                              .msg_control = control,
                              .msg_controllen = sizeof(control) };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = IPPROTO_UDP;
    header->cmsg_type = UDP_SEGMENT;
    header->cmsg_len = CMSG_LEN(sizeof(segment_bytes));
    memcpy(CMSG_DATA(header), &segment_bytes, sizeof(segment_bytes));
    (void)sendmsg(udp->fd, &message, 0);
}

static void floor_udp_send(js_floor_link *floor, uint32_t bytes, uint32_t count)
{
    floor_udp *udp = (floor_udp *)floor;
    if (count == 1) {
        (void)send(udp->fd, floor->frame[0], bytes, 0);
        return;
    }
    uint32_t most = UDP_CALL_BYTES / bytes; /* frames per call */
    for (uint32_t i = 0; i < count; i += most) {
        uint32_t now = count - i < most ? count - i : most;
        udp_send_segments(udp, udp->frames + (size_t)i * bytes, bytes, now);
    }
}

static const uint8_t *floor_udp_take(js_floor_link *floor, uint32_t *bytes)
{
    floor_udp *udp = (floor_udp *)floor;
    if (udp->at == udp->received_bytes) {
        _Alignas(8) uint8_t control[CMSG_SPACE(sizeof(int))];
        struct iovec vector = { udp->received, sizeof(udp->received) };
        struct msghdr message = { .msg_iov = &vector,
                                  .msg_iovlen = 1,
                                  .msg_control = control,
                                  .msg_controllen = sizeof(control) };
        ssize_t got = recvmsg(udp->fd, &message, MSG_DONTWAIT);
        if (got <= 0) {
            return NULL;
        }
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        udp->at = 0;
        udp->received_bytes = (uint32_t)got;
        udp->segment_bytes = (uint32_t)got;
        if (header != NULL && header->cmsg_type == UDP_GRO) {
            int segment_bytes;
            memcpy(&segment_bytes, CMSG_DATA(header), sizeof(segment_bytes));
            udp->segment_bytes = (uint32_t)segment_bytes;
        }
    }
    const uint8_t *frame = udp->received + udp->at;
    uint32_t left = udp->received_bytes - udp->at;
    *bytes = left < udp->segment_bytes ? left : udp->segment_bytes;
    udp->at += *bytes;
    return frame;
}

static void floor_udp_connect(js_floor_link *floor)
{
    floor_udp *udp = (floor_udp *)floor;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = floor->peer.port };
    memcpy(&address.sin_addr, floor->peer.ip, 4);
    link_floor_require(connect(udp->fd, (struct sockaddr *)&address, sizeof(address)) == 0,
                       "connect");
}

js_floor_link *link_floor_udp(const char *ip)
{
    floor_udp *udp = calloc(1, sizeof(*udp));
    struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t length = sizeof(address);
    int on = 1;
    int mode = IP_PMTUDISC_PROBE;
    int buffer = UDP_BUFFER_BYTES;
    udp->frames = aligned_alloc(4096, (size_t)FLOOR_BATCH * FLOOR_FRAME_BYTES_MAX);
    memset(udp->frames, 0, (size_t)FLOOR_BATCH * FLOOR_FRAME_BYTES_MAX);
    udp->fd = socket(AF_INET, SOCK_DGRAM, 0);
    link_floor_require(inet_pton(AF_INET, ip, &address.sin_addr) == 1, ip);
    link_floor_require(bind(udp->fd, (struct sockaddr *)&address, length) == 0, "bind");
    getsockname(udp->fd, (struct sockaddr *)&address, &length);
    setsockopt(udp->fd, IPPROTO_IP, IP_MTU_DISCOVER, &mode, sizeof(mode));
    setsockopt(udp->fd, IPPROTO_UDP, UDP_GRO, &on, sizeof(on));
    setsockopt(udp->fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));
    setsockopt(udp->fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    memcpy(udp->floor.own.ip, &address.sin_addr, 4);
    udp->floor.own.port = address.sin_port;
    udp->floor.frame[0] = udp->frames;
    udp->floor.send = floor_udp_send;
    udp->floor.take = floor_udp_take;
    udp->floor.connect = floor_udp_connect;
    return &udp->floor;
}
