/* A link used one frame at a time, by tools and tests that are not in C. */
#include "js_link.h"
#include "js_status.h"

#include <string.h>

int32_t js_link_call_add_peer(js_link *link, const js_link_address *address, uint32_t *out_peer)
{
    return js_link_add_peer(link, address, out_peer);
}

int32_t js_link_call_send(js_link *link, uint32_t peer, const void *frame, uint32_t bytes)
{
    if (bytes == 0 || bytes > link->mtu_bytes) {
        return JS_FAIL(JS_ERR_INVALID, "%s: a frame of %u bytes, it takes 1 .. %u", link->name,
                       bytes, link->mtu_bytes);
    }
    uint8_t *room = js_link_begin(link, peer);
    if (room == NULL) {
        return JS_ERR_FULL;
    }
    memcpy(room, frame, bytes);
    js_link_commit(link, peer, bytes);
    js_link_flush(link);
    return JS_OK;
}

int32_t js_link_call_receive(js_link *link, void *out, uint32_t room, uint32_t *out_bytes)
{
    js_link_packet packet;
    if (js_link_receive(link, &packet, 1) == 0) {
        return JS_ERR_EMPTY;
    }
    *out_bytes = packet.bytes;
    memcpy(out, packet.frame, packet.bytes < room ? packet.bytes : room);
    js_link_release(link);
    return JS_OK;
}
