/* A network of its own for a test: a namespace with two interfaces joined by a cable (veth), js0
 * and js1. It goes away with the process. */
#ifndef JS_TEST_NET_H
#define JS_TEST_NET_H

#include "js_test.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

static inline void js_test_net_write(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t written = write(fd, text, strlen(text));
        (void)written; /* where it is refused, what follows fails and says so */
        close(fd);
    }
}

/* Enters a new network namespace, as root of a new user namespace, or as the user that we are. */
static inline bool js_test_net_unshare(bool keeps_user)
{
    if (keeps_user) {
        return unshare(CLONE_NEWNET) == 0;
    }
    char map[64];
    uid_t uid = getuid();
    gid_t gid = getgid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) {
        return false;
    }
    js_test_net_write("/proc/self/setgroups", "deny");
    snprintf(map, sizeof(map), "0 %u 1", (unsigned)uid);
    js_test_net_write("/proc/self/uid_map", map);
    snprintf(map, sizeof(map), "0 %u 1", (unsigned)gid);
    js_test_net_write("/proc/self/gid_map", map);
    return true;
}

static inline bool js_test_net_run(const char *command)
{
    return system(command) == 0;
}

/* Enters the namespace, once per process, with interfaces of this MTU; NULL, or why it cannot. */
static inline const char *js_test_net_enter(uint32_t mtu_bytes, bool keeps_user)
{
    static bool is_inside;
    char command[256];
    if (!is_inside) {
        if (!js_test_net_run("ip -V >/dev/null 2>&1")) {
            return "there is no program ip (iproute2) here";
        }
        if (!js_test_net_unshare(keeps_user)) {
            return "no permission for a namespace";
        }
        if (!js_test_net_run("ip link set lo up && ip link add js0 type veth peer name js1")) {
            return "no virtual Ethernet can be made here";
        }
        is_inside = true;
    }
    snprintf(command, sizeof(command), "ip link set js0 mtu %u up && ip link set js1 mtu %u up",
             mtu_bytes, mtu_bytes);
    return js_test_net_run(command) ? NULL : "the virtual Ethernet does not come up";
}

#endif
