/* Links between hosts, as the control plane sees them: an endpoint is opened, its address told to
 * the peers, and given to a communicator (js_comm_connect). The data plane's own view is
 * csrc/link/js_link.h. */
#ifndef JETSTREAM_JS_LINK_API_H
#define JETSTREAM_JS_LINK_API_H

#include <stdint.h>

#define JS_LINK_RAILS_MAX 4

enum js_link_kind {
    JS_LINK_UDP = 1,
    JS_LINK_PACKET = 2, /* raw Ethernet frames, AF_PACKET */
    JS_LINK_XDP = 3,    /* raw Ethernet frames, AF_XDP */
};

/* How to reach an endpoint; 64 bytes, told to the peers out of band. */
typedef struct js_link_address {
    uint8_t kind; /* enum js_link_kind */
    uint8_t is_ipv6;
    uint16_t port;      /* UDP; host byte order, as everything here */
    uint16_t ethertype; /* packet and xdp */
    uint16_t dcid;      /* frames of rank r of the communicator carry dcid + r; a multiple of 256 */
    uint16_t epoch;     /* drawn at random, as dcid and key, when the endpoint is opened */
    uint16_t reserved;
    uint32_t mtu_bytes; /* largest frame of ours that fits the interface */
    uint8_t ip[16];     /* UDP; IPv4 in the first four */
    uint8_t mac[6];     /* packet and xdp */
    uint8_t reserved2[2];
    uint64_t key;
    char interface[16];
} js_link_address;

/* Zero and empty mean: the default. */
typedef struct js_link_config {
    uint32_t kind;
    uint16_t port;          /* UDP: any free one */
    uint16_t ethertype;     /* 0x88b5 */
    char interface[16];     /* packet, xdp: needed; UDP: found by ip */
    char ip[48];            /* UDP: of this end; 127.0.0.1 */
    uint32_t mtu_bytes;     /* at most what the interface allows */
    uint32_t buffer_frames; /* that wait for the receiver to look */
    const char *fault;      /* faults to inject: js_link_fault.c has the grammar; NULL: none */
    const char *trace;      /* pcapng file to write; NULL: none */
} js_link_config;

typedef struct js_link_stats {
    uint64_t frames_sent;
    uint64_t frames_received;
    uint64_t bytes_sent;
    uint64_t bytes_received;
    uint64_t send_drops;    /* the kernel had no room */
    uint64_t receive_drops; /* the kernel had no room, as far as it tells */
    uint64_t system_calls;
    uint64_t faults;      /* frames dropped, repeated, ... on purpose */
    uint64_t mtu_bytes;   /* longest frame that the interface takes, */
    uint64_t frame_bytes; /* and that gets through to every peer; the same before there are any */
} js_link_stats;

typedef struct js_link js_link;

/* What js_link_choose finds. */
typedef struct js_link_choice {
    uint32_t kind;
    char interface[16]; /* that the own address belongs to */
    char why[236];      /* a sentence, as "udp: 10.0.0.2 is beyond a router, ..." */
} js_link_choice;

/* Opens an endpoint and draws its dcid, epoch and key. Returns JS_OK; JS_ERR_INVALID: the
 * configuration makes no sense; JS_ERR_UNSUPPORTED: this kernel or interface cannot;
 * JS_ERR_SYSTEM: a system call failed. The text of js_last_error names interface, address and
 * reason. */
JS_API int32_t js_link_open(const js_link_config *config, js_link **out);
/* Several links as one: frames to a peer go by one of them. All of one kind, by different
 * interfaces; for udp also from different ports. All ranks have as many. Returns what js_link_open
 * does. */
JS_API int32_t js_link_open_rails(const js_link_config *configs, uint32_t count, js_link **out);
JS_API uint32_t js_link_rails(const js_link *link); /* how many; 1 of js_link_open */
/* The address of each rail, js_link_rails(link) of them. */
JS_API void js_link_get_addresses(js_link *link, js_link_address *out);
JS_API void js_link_close(js_link *link); /* NULL does nothing */
JS_API void js_link_get_address(const js_link *link, js_link_address *out);
JS_API void js_link_get_stats(js_link *link, js_link_stats *out);
/* For messages, as "udp 127.0.0.1:40001 on lo"; valid as long as the link. */
JS_API const char *js_link_name(const js_link *link);
JS_API const char *js_link_kind_name(uint32_t kind); /* "udp"; NULL: there is no such kind */
/* The MTU of an interface, without the link-layer header, in bytes; or JS_ERR_INVALID, if there is
 * no such interface, or JS_ERR_SYSTEM. */
JS_API int32_t js_link_interface_mtu(const char *interface);
/* The best kind of link between the own IP address and a peer's, as far as this host can tell, and
 * why: packet if both are on one Ethernet segment and this process may send raw frames, else udp.
 * (Never xdp: it takes a queue of the interface away from others, which wants to be asked for.)
 * Returns JS_OK; JS_ERR_INVALID: no addresses, or own_ip is none of this host. */
JS_API int32_t js_link_choose(const char *own_ip, const char *peer_ip, js_link_choice *out);

/* A link that is not given to a communicator can be used by hand, one frame a call: for tools and
 * tests. `peer` is what js_link_call_add_peer has told. JS_ERR_FULL: no room at the moment. */
JS_API int32_t js_link_call_add_peer(js_link *link, const js_link_address *address,
                                     uint32_t *out_peer);
JS_API int32_t js_link_call_send(js_link *link, uint32_t peer, const void *frame, uint32_t bytes);
/* Copies the next frame that has come, or as much of it as there is room for; JS_ERR_EMPTY: none
 * has. Does not wait. */
JS_API int32_t js_link_call_receive(js_link *link, void *out, uint32_t room, uint32_t *out_bytes);

#endif
