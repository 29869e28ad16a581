/* The program that hands our frames to the socket of a link xdp, loaded with bare bpf(2).
 *
 * It compares EtherType, dcid and epoch, and leaves everything else to the stack: frames for the
 * packet links of the same interface, too. Program and attachment live as long as their
 * descriptors: nothing stays behind when the process dies. */
#include "js_link_xdp_program.h"

#include "js_status.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    PROGRAM_QUEUES = 64
};

static int program_bpf(int command, union bpf_attr *attributes)
{
    return (int)syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

static struct bpf_insn program_load(uint8_t size, uint32_t to, uint32_t from, int16_t offset)
{
    return (struct bpf_insn){ .code = (uint8_t)(BPF_LDX | BPF_MEM | size),
                              .dst_reg = to & 0xfu,
                              .src_reg = from & 0xfu,
                              .off = offset };
}

static struct bpf_insn program_with(uint8_t code, uint32_t to, uint32_t from, int32_t value)
{
    return (struct bpf_insn){
        .code = code, .dst_reg = to & 0xfu, .src_reg = from & 0xfu, .imm = value
    };
}

static struct bpf_insn program_jump(uint8_t code, uint32_t to, uint32_t from, int32_t value,
                                    int16_t over)
{
    struct bpf_insn jump = program_with(code, to, from, value);
    jump.off = over;
    return jump;
}

/* Frames of the type for this endpoint go to the socket that the map has for their queue; all
 * others, and ours where there is none, to the stack. */
static int program_install(int map_fd, const js_link_address *own)
{
    const int16_t type_at = offsetof(struct ethhdr, h_proto);
    const int16_t dcid_high_at = ETH_HLEN + 5; /* the frame is little endian */
    const int16_t epoch_at = ETH_HLEN + 6;
    const int16_t data = offsetof(struct xdp_md, data);
    const int16_t data_end = offsetof(struct xdp_md, data_end);
    const int16_t queue = offsetof(struct xdp_md, rx_queue_index);
    struct bpf_insn instructions[] = {
        program_load(BPF_W, BPF_REG_2, BPF_REG_1, data),
        program_load(BPF_W, BPF_REG_3, BPF_REG_1, data_end),
        program_with(BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_4, BPF_REG_2, 0),
        program_with(BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_4, 0, ETH_HLEN + 8),
        program_jump(BPF_JMP | BPF_JGT | BPF_X, BPF_REG_4, BPF_REG_3, 0, 12),
        program_load(BPF_H, BPF_REG_5, BPF_REG_2, type_at),
        program_jump(BPF_JMP | BPF_JNE | BPF_K, BPF_REG_5, 0, htons(own->ethertype), 10),
        program_load(BPF_B, BPF_REG_5, BPF_REG_2, dcid_high_at),
        program_jump(BPF_JMP | BPF_JNE | BPF_K, BPF_REG_5, 0, own->dcid >> 8, 8),
        program_load(BPF_H, BPF_REG_5, BPF_REG_2, epoch_at),
        program_jump(BPF_JMP | BPF_JNE | BPF_K, BPF_REG_5, 0, htole16(own->epoch), 6),
        program_load(BPF_W, BPF_REG_2, BPF_REG_1, queue),
        program_with(BPF_LD | BPF_DW | BPF_IMM, BPF_REG_1, BPF_PSEUDO_MAP_FD, map_fd),
        program_with(0, 0, 0, 0), /* second half of the one before */
        program_with(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_3, 0, XDP_PASS),
        program_with(BPF_JMP | BPF_CALL, 0, 0, BPF_FUNC_redirect_map),
        program_with(BPF_JMP | BPF_EXIT, 0, 0, 0),
        program_with(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, XDP_PASS),
        program_with(BPF_JMP | BPF_EXIT, 0, 0, 0),
    };
    static const char license[] = "GPL";
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof(attributes));
    attributes.prog_type = BPF_PROG_TYPE_XDP;
    attributes.insn_cnt = JS_ARRAY_LEN(instructions);
    attributes.insns = (uintptr_t)instructions;
    attributes.license = (uintptr_t)license;
    memcpy(attributes.prog_name, "jetstream", sizeof("jetstream"));
    return program_bpf(BPF_PROG_LOAD, &attributes);
}

static int program_attach(int program_fd, int32_t interface, uint32_t mode)
{
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof(attributes));
    attributes.link_create.prog_fd = (uint32_t)program_fd;
    attributes.link_create.target_ifindex = (uint32_t)interface;
    attributes.link_create.attach_type = BPF_XDP;
    attributes.link_create.flags = mode;
    return program_bpf(BPF_LINK_CREATE, &attributes);
}

int32_t js_link_xdp_load(js_link_xdp_program *program, const js_link_interface *at,
                         const js_link_address *own)
{
    const char *interface = at->name;
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof(attributes));
    attributes.map_type = BPF_MAP_TYPE_XSKMAP;
    attributes.key_size = sizeof(uint32_t);
    attributes.value_size = sizeof(uint32_t);
    attributes.max_entries = PROGRAM_QUEUES;
    program->map_fd = program_bpf(BPF_MAP_CREATE, &attributes);
    if (program->map_fd < 0) {
        return JS_FAIL_SYS("link xdp: map of sockets for %s (CAP_BPF and CAP_NET_ADMIN of the host "
                           "are needed)",
                           interface);
    }
    program->program_fd = program_install(program->map_fd, own);
    if (program->program_fd < 0) {
        return JS_FAIL_SYS("link xdp: program for %s (CAP_BPF and CAP_NET_ADMIN of the host are "
                           "needed)",
                           interface);
    }
    /* In the driver if it can, else where every interface can. A virtual interface is slower with
     * the program in its driver: there the frame has been through the kernel already. */
    program->is_native = at->is_adapter;
    program->attach_fd =
        program_attach(program->program_fd, at->index,
                       program->is_native ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE);
    if (program->attach_fd < 0 && errno != EBUSY && program->is_native) {
        program->is_native = false;
        program->attach_fd = program_attach(program->program_fd, at->index, XDP_FLAGS_SKB_MODE);
    }
    if (program->attach_fd < 0 && errno == EBUSY) {
        return JS_FAIL_SYS("link xdp: interface %s has an XDP program already; a link xdp does not "
                           "share it, not even with another one (link packet does)",
                           interface);
    }
    if (program->attach_fd < 0) {
        return JS_FAIL_SYS("link xdp: cannot attach a program to %s", interface);
    }
    return JS_OK;
}

int32_t js_link_xdp_direct(const js_link_xdp_program *program, uint32_t queue, int socket_fd)
{
    union bpf_attr attributes;
    uint32_t value = (uint32_t)socket_fd;
    memset(&attributes, 0, sizeof(attributes));
    attributes.map_fd = (uint32_t)program->map_fd;
    attributes.key = (uintptr_t)&queue;
    attributes.value = (uintptr_t)&value;
    if (program_bpf(BPF_MAP_UPDATE_ELEM, &attributes) != 0) {
        return JS_FAIL_SYS("link xdp: socket for queue %u", queue);
    }
    return JS_OK;
}

void js_link_xdp_unload(js_link_xdp_program *program)
{
    int fds[] = { program->attach_fd, program->program_fd, program->map_fd };
    for (size_t i = 0; i < JS_ARRAY_LEN(fds); i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
}
