/* The floor of the link xdp: a socket with its rings, and a program loaded by hand. */
#include "link_floor.h"

#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

enum {
    XDP_TYPE = 0x88b6,
    XDP_FRAMES = 1024, /* of each ring */
    XDP_CHUNK_BYTES = 4096,
};

typedef struct {
    uint32_t *producer;
    uint32_t *consumer;
    void *entries;
    uint32_t own;
} floor_ring;

typedef struct {
    js_floor_link floor;
    int fd;
    uint8_t *memory; /* XDP_FRAMES chunks for receiving, then FLOOR_BATCH for sending */
    floor_ring fill;
    floor_ring completion;
    floor_ring receive;
    floor_ring send;
    uint64_t held; /* chunk of the frame taken last */
    bool holds;
} floor_xdp;

static uint32_t xdp_load(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void xdp_store(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* Waits until all frames have left: then their chunks are free again. */
static void floor_xdp_send(js_floor_link *floor, uint32_t bytes, uint32_t count)
{
    floor_xdp *xdp = (floor_xdp *)floor;
    struct xdp_desc *entries = xdp->send.entries;
    for (uint32_t i = 0; i < count; i++) {
        entries[xdp->send.own++ % XDP_FRAMES] =
            (struct xdp_desc){ .addr = (uint64_t)(floor->frame[i] - ETH_HLEN - xdp->memory),
                               .len = ETH_HLEN + bytes };
    }
    xdp_store(xdp->send.producer, xdp->send.own);
    do {
        (void)sendto(xdp->fd, NULL, 0, MSG_DONTWAIT, NULL, 0);
    } while (xdp_load(xdp->completion.producer) != xdp->send.own);
    xdp_store(xdp->completion.consumer, xdp->send.own);
}

static const uint8_t *floor_xdp_take(js_floor_link *floor, uint32_t *bytes)
{
    floor_xdp *xdp = (floor_xdp *)floor;
    const struct xdp_desc *entries = xdp->receive.entries;
    uint64_t *fill = xdp->fill.entries;
    if (xdp->holds) {
        fill[xdp->fill.own++ % XDP_FRAMES] = xdp->held;
        xdp_store(xdp->fill.producer, xdp->fill.own);
        xdp->holds = false;
    }
    if (xdp_load(xdp->receive.producer) == xdp->receive.own) {
        return NULL;
    }
    const struct xdp_desc *entry = &entries[xdp->receive.own % XDP_FRAMES];
    const uint8_t *frame = xdp->memory + entry->addr + ETH_HLEN;
    *bytes = entry->len - ETH_HLEN;
    xdp->held = entry->addr & ~(uint64_t)(XDP_CHUNK_BYTES - 1);
    xdp->holds = true;
    xdp_store(xdp->receive.consumer, ++xdp->receive.own);
    return frame;
}

static void floor_xdp_connect(js_floor_link *floor)
{
    struct ethhdr header = { .h_proto = htons(XDP_TYPE) };
    memcpy(header.h_dest, floor->peer.mac, ETH_ALEN);
    memcpy(header.h_source, floor->own.mac, ETH_ALEN);
    for (uint32_t i = 0; i < FLOOR_BATCH; i++) {
        memcpy(floor->frame[i] - ETH_HLEN, &header, ETH_HLEN);
    }
}

static void xdp_map(floor_xdp *xdp, floor_ring *ring, int option, uint64_t page,
                    const struct xdp_ring_offset *offset)
{
    uint32_t entries = XDP_FRAMES;
    link_floor_require(setsockopt(xdp->fd, SOL_XDP, option, &entries, sizeof(entries)) == 0,
                       "XDP ring");
    bool has_frames = option == XDP_RX_RING || option == XDP_TX_RING;
    size_t bytes =
        offset->desc + XDP_FRAMES * (has_frames ? sizeof(struct xdp_desc) : sizeof(uint64_t));
    uint8_t *map =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, xdp->fd, (off_t)page);
    link_floor_require(map != MAP_FAILED, "mapping an XDP ring");
    ring->producer = (uint32_t *)(void *)(map + offset->producer);
    ring->consumer = (uint32_t *)(void *)(map + offset->consumer);
    ring->entries = map + offset->desc;
}

static int xdp_bpf(int command, union bpf_attr *attributes)
{
    return (int)syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

#define STEP(code_, to_, from_, offset_, value_)                                                   \
    {                                                                                              \
        .code = (code_), .dst_reg = (to_), .src_reg = (from_), .off = (offset_), .imm = (value_)   \
    }

/* All frames of the interface's first queue that have our EtherType go to the socket. */
static void xdp_attach(floor_xdp *xdp, uint32_t interface)
{
    union bpf_attr map = {
        .map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = 1
    };
    int map_fd = xdp_bpf(BPF_MAP_CREATE, &map);
    link_floor_require(map_fd >= 0, "BPF map");
    struct bpf_insn steps[] = {
        STEP(BPF_LDX | BPF_MEM | BPF_W, 2, 1, 0, 0),
        STEP(BPF_LDX | BPF_MEM | BPF_W, 3, 1, 4, 0),
        STEP(BPF_ALU64 | BPF_MOV | BPF_X, 4, 2, 0, 0),
        STEP(BPF_ALU64 | BPF_ADD | BPF_K, 4, 0, 0, ETH_HLEN),
        STEP(BPF_JMP | BPF_JGT | BPF_X, 4, 3, 8, 0),
        STEP(BPF_LDX | BPF_MEM | BPF_H, 5, 2, 12, 0),
        STEP(BPF_JMP | BPF_JNE | BPF_K, 5, 0, 6, htons(XDP_TYPE)),
        STEP(BPF_LDX | BPF_MEM | BPF_W, 2, 1, 16, 0),
        STEP(BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map_fd),
        STEP(0, 0, 0, 0, 0),
        STEP(BPF_ALU64 | BPF_MOV | BPF_K, 3, 0, 0, XDP_PASS),
        STEP(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map),
        STEP(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
        STEP(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, XDP_PASS),
        STEP(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
    union bpf_attr load = { .prog_type = BPF_PROG_TYPE_XDP,
                            .insn_cnt = sizeof(steps) / sizeof(steps[0]),
                            .insns = (uintptr_t)steps,
                            .license = (uintptr_t) "GPL" };
    int program_fd = xdp_bpf(BPF_PROG_LOAD, &load);
    link_floor_require(program_fd >= 0, "BPF program");
    uint32_t queue = 0;
    union bpf_attr direct = { .map_fd = (uint32_t)map_fd,
                              .key = (uintptr_t)&queue,
                              .value = (uintptr_t)&xdp->fd };
    link_floor_require(xdp_bpf(BPF_MAP_UPDATE_ELEM, &direct) == 0, "socket in the BPF map");
    union bpf_attr attach;
    memset(&attach, 0, sizeof(attach));
    attach.link_create.prog_fd = (uint32_t)program_fd;
    attach.link_create.target_ifindex = interface;
    attach.link_create.attach_type = BPF_XDP;
    attach.link_create.flags = XDP_FLAGS_SKB_MODE; /* faster than the driver's on veth */
    link_floor_require(xdp_bpf(BPF_LINK_CREATE, &attach) >= 0, "attaching the BPF program");
}

static void xdp_memory(floor_xdp *xdp)
{
    size_t bytes = (size_t)(XDP_FRAMES + FLOOR_BATCH) * XDP_CHUNK_BYTES;
    xdp->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    link_floor_require(xdp->memory != MAP_FAILED, "memory");
    struct xdp_umem_reg area = { .addr = (uintptr_t)xdp->memory,
                                 .len = bytes,
                                 .chunk_size = XDP_CHUNK_BYTES };
    link_floor_require(setsockopt(xdp->fd, SOL_XDP, XDP_UMEM_REG, &area, sizeof(area)) == 0,
                       "XDP memory");
    for (uint32_t i = 0; i < FLOOR_BATCH; i++) {
        xdp->floor.frame[i] = xdp->memory + (size_t)(XDP_FRAMES + i) * XDP_CHUNK_BYTES + 64;
    }
}

js_floor_link *link_floor_xdp(const char *interface)
{
    floor_xdp *xdp = calloc(1, sizeof(*xdp));
    struct ifreq request = { 0 };
    struct xdp_mmap_offsets offsets;
    socklen_t length = sizeof(offsets);
    xdp->fd = socket(AF_XDP, SOCK_RAW, 0);
    link_floor_require(xdp->fd >= 0, "XDP socket");
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", interface);
    int any = socket(AF_INET, SOCK_DGRAM, 0);
    link_floor_require(ioctl(any, SIOCGIFHWADDR, &request) == 0, interface);
    close(any);
    memcpy(xdp->floor.own.mac, request.ifr_hwaddr.sa_data, ETH_ALEN);
    xdp_memory(xdp);
    link_floor_require(getsockopt(xdp->fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length) == 0,
                       "XDP offsets");
    xdp_map(xdp, &xdp->fill, XDP_UMEM_FILL_RING, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr);
    xdp_map(xdp, &xdp->completion, XDP_UMEM_COMPLETION_RING, XDP_UMEM_PGOFF_COMPLETION_RING,
            &offsets.cr);
    xdp_map(xdp, &xdp->receive, XDP_RX_RING, XDP_PGOFF_RX_RING, &offsets.rx);
    xdp_map(xdp, &xdp->send, XDP_TX_RING, XDP_PGOFF_TX_RING, &offsets.tx);
    for (uint32_t i = 0; i < XDP_FRAMES; i++) {
        ((uint64_t *)xdp->fill.entries)[xdp->fill.own++] = (uint64_t)i * XDP_CHUNK_BYTES;
    }
    xdp_store(xdp->fill.producer, xdp->fill.own);
    uint32_t index = if_nametoindex(interface);
    struct sockaddr_xdp address = { .sxdp_family = AF_XDP,
                                    .sxdp_ifindex = index,
                                    .sxdp_flags = XDP_COPY };
    link_floor_require(bind(xdp->fd, (struct sockaddr *)&address, sizeof(address)) == 0,
                       "XDP bind");
    xdp_attach(xdp, index);
    xdp->floor.send = floor_xdp_send;
    xdp->floor.take = floor_xdp_take;
    xdp->floor.connect = floor_xdp_connect;
    return &xdp->floor;
}
