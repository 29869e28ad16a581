/* Opening and closing links of any kind, with their decorators; what they have in common. */
#include "js_link.h"

#include "js_link_decorators.h"
#include "js_link_kinds.h"
#include "js_status.h"

#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

/* By enum js_link_kind. */
static const struct {
    const char *name;
    int32_t (*open)(const js_link_config *config, const js_link_address *identity, js_link **out);
} link_kinds[] = {
    [JS_LINK_UDP] = { "udp", js_link_udp_open },
    [JS_LINK_PACKET] = { "packet", js_link_packet_open },
    [JS_LINK_XDP] = { "xdp", js_link_xdp_open },
};

const char *js_link_kind_name(uint32_t kind)
{
    return kind < JS_ARRAY_LEN(link_kinds) ? link_kinds[kind].name : NULL;
}

/* Frames of an earlier endpoint at the same address must not be taken for this one's: dcid, epoch
 * and key are drawn anew for every endpoint. Zero is no dcid, so that zeroed memory is no frame. */
int32_t js_link_draw_identity(js_link_address *out)
{
    struct {
        uint64_t key;
        uint16_t epoch;
        uint8_t dcid;
    } drawn = { 0 };
    while (drawn.dcid == 0 || drawn.key == 0) {
        if (getrandom(&drawn, sizeof(drawn), 0) != (ssize_t)sizeof(drawn)) {
            return JS_FAIL_SYS("getrandom, for the identity of a link");
        }
    }
    memset(out, 0, sizeof(*out));
    out->dcid = (uint16_t)(drawn.dcid << 8);
    out->epoch = drawn.epoch;
    out->key = drawn.key;
    return JS_OK;
}

static int32_t link_check(const js_link_config *config)
{
    const char *kind = js_link_kind_name(config->kind);
    if (kind == NULL) {
        return JS_FAIL(JS_ERR_INVALID, "there is no kind of link with the number %u", config->kind);
    }
    if (memchr(config->interface, 0, sizeof(config->interface)) == NULL ||
        memchr(config->ip, 0, sizeof(config->ip)) == NULL) {
        return JS_FAIL(JS_ERR_INVALID, "link %s: name of the interface or address too long", kind);
    }
    if (config->kind != JS_LINK_UDP && config->interface[0] == '\0') {
        return JS_FAIL(JS_ERR_INVALID, "link %s: the name of a network interface is needed", kind);
    }
    return JS_OK;
}

/* Puts the decorators around *link. The trace is the inner one: it shows what is on the wire. */
static int32_t link_decorate(const js_link_config *config, js_link **link)
{
    if (config->trace != NULL && config->trace[0] != '\0') {
        JS_TRY(js_link_trace_wrap(*link, config->trace, link));
    }
    if (config->fault != NULL && config->fault[0] != '\0') {
        JS_TRY(js_link_fault_wrap(*link, config->fault, link));
    }
    return JS_OK;
}

int32_t js_link_open_as(const js_link_config *config, const js_link_address *given, js_link **out)
{
    js_link_address identity = *given;
    js_link *link = NULL;
    JS_TRY(link_check(config));
    identity.kind = (uint8_t)config->kind;
    JS_TRY(link_kinds[config->kind].open(config, &identity, &link));
    int32_t result = link_decorate(config, &link);
    if (result != JS_OK) {
        link->ops->close(link);
        return result;
    }
    link->rails = 1;
    *out = link;
    return JS_OK;
}

int32_t js_link_open(const js_link_config *config, js_link **out)
{
    js_link_address identity;
    JS_TRY(js_link_draw_identity(&identity));
    return js_link_open_as(config, &identity, out);
}

void js_link_close(js_link *link)
{
    if (link != NULL) {
        link->ops->close(link);
    }
}

void js_link_get_address(const js_link *link, js_link_address *out)
{
    *out = link->address;
}

void js_link_get_stats(js_link *link, js_link_stats *out)
{
    uint64_t faults = 0;
    uint64_t mtu_bytes = link->mtu_bytes;
    while (link->inner != NULL) {
        faults += link->stats.faults;
        link = link->inner;
    }
    if (link->ops->update != NULL) {
        link->ops->update(link);
    }
    *out = link->stats;
    out->faults += faults;
    out->mtu_bytes = mtu_bytes;
    out->frame_bytes = mtu_bytes;
}

const char *js_link_name(const js_link *link)
{
    return link->name;
}

int32_t js_link_choose_mtu(const js_link_config *config, uint32_t usual, uint32_t most,
                           const char *where, uint32_t *out)
{
    const char *kind = js_link_kind_name(config->kind);
    uint32_t wanted = config->mtu_bytes != 0 ? config->mtu_bytes : usual;
    if (wanted > most) {
        return JS_FAIL(JS_ERR_INVALID, "link %s: frames of %u bytes do not fit %s, which takes %u",
                       kind, wanted, where, most);
    }
    if (wanted < JS_LINK_MTU_BYTES_MIN) {
        return JS_FAIL(JS_ERR_INVALID, "link %s: frames of %u bytes on %s are too small: %u needed",
                       kind, wanted, where, JS_LINK_MTU_BYTES_MIN);
    }
    *out = wanted;
    return JS_OK;
}

uint32_t js_link_set_buffer(int fd, int option, uint32_t bytes)
{
    int force = option == SO_RCVBUF ? SO_RCVBUFFORCE : SO_SNDBUFFORCE;
    int value = (int)bytes;
    socklen_t length = sizeof(value);
    if (setsockopt(fd, SOL_SOCKET, force, &value, sizeof(value)) != 0) {
        (void)setsockopt(fd, SOL_SOCKET, option, &value, sizeof(value)); /* cut to the limit */
    }
    value = 0;
    (void)getsockopt(fd, SOL_SOCKET, option, &value, &length);
    return value > 0 ? (uint32_t)value : 0;
}
