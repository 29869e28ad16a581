/* Creating, attaching and validating the segment. */
#include "js_seg.h"

#include "js_assert.h"
#include "js_status.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEG_PAGE_BYTES 4096u

js_seg_header *js_seg_get_header(const js_seg *seg)
{
    return (js_seg_header *)(void *)seg->base;
}

js_seg_rank *js_seg_get_rank(const js_seg *seg, uint32_t rank)
{
    JS_ASSERT(rank < seg->world_area.config.world);
    return (js_seg_rank *)(void *)(seg->base + SEG_PAGE_BYTES) + rank;
}

static uint64_t seg_area_offset(const js_seg_config *config)
{
    return SEG_PAGE_BYTES + js_round_up(config->world * sizeof(js_seg_rank), SEG_PAGE_BYTES);
}

static uint64_t seg_total_bytes(const js_seg_config *config)
{
    js_area area;
    js_area_init(&area, NULL, config, seg_area_offset(config));
    return area.end_offset;
}

static int32_t seg_map(int fd, uint64_t bytes, js_seg **out)
{
    js_seg *seg = calloc(1, sizeof(*seg));
    if (seg == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a segment handle");
    }
    seg->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (seg->base == MAP_FAILED) {
        free(seg);
        return JS_FAIL_SYS("mapping the segment of %llu bytes", (unsigned long long)bytes);
    }
    seg->total_bytes = bytes;
    seg->fd = fd;
    *out = seg;
    return JS_OK;
}

static void seg_format(js_seg *seg, const js_seg_config *config)
{
    js_seg_header *header = js_seg_get_header(seg);
    header->abi_version = JS_ABI_VERSION;
    header->header_bytes = sizeof(*header);
    strncpy(header->build_id, js_build_id(), sizeof(header->build_id) - 1);
    header->total_bytes = seg->total_bytes;
    header->config = *config;
    header->clock = *js_clock_calibrate();
    js_area_init(&seg->world_area, seg->base, config, seg_area_offset(config));
    js_area_format(&seg->world_area);
    js_store_rel_u64(&header->magic, JS_SEG_MAGIC);
}

int32_t js_seg_create(const js_seg_config *config, js_seg **out)
{
    js_seg_config checked = *config;
    JS_TRY(js_area_config_check(&checked));
    uint64_t bytes = seg_total_bytes(&checked);
    int fd = memfd_create("jetstream", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return JS_FAIL_SYS("memfd_create");
    }
    int32_t result = JS_OK;
    if (ftruncate(fd, (off_t)bytes) != 0) {
        result = JS_FAIL_SYS("sizing the segment to %llu bytes", (unsigned long long)bytes);
    } else if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        /* Sealed, so that no rank can make the others fault by truncating it. */
        result = JS_FAIL_SYS("sealing the segment");
    } else {
        result = seg_map(fd, bytes, out);
    }
    if (result != JS_OK) {
        close(fd);
        return result;
    }
    seg_format(*out, &checked);
    return JS_OK;
}

static int32_t seg_validate(js_seg *seg)
{
    const js_seg_header *header = js_seg_get_header(seg);
    if (js_load_acq_u64(&header->magic) != JS_SEG_MAGIC) {
        return JS_FAIL(JS_ERR_SEGMENT, "the shared memory does not begin with a segment header");
    }
    if (header->abi_version != JS_ABI_VERSION || header->header_bytes != sizeof(*header)) {
        return JS_FAIL(JS_ERR_VERSION, "segment ABI %u, this build has %d: install one version",
                       header->abi_version, JS_ABI_VERSION);
    }
    if (strncmp(header->build_id, js_build_id(), sizeof(header->build_id)) != 0) {
        return JS_FAIL(JS_ERR_VERSION, "segment of build %.*s, this is build %s: install one build",
                       JS_BUILD_ID_BYTES, header->build_id, js_build_id());
    }
    js_seg_config config = header->config;
    if (js_area_config_check(&config) != JS_OK ||
        memcmp(&config, &header->config, sizeof(config)) != 0 ||
        header->total_bytes != seg->total_bytes || seg_total_bytes(&config) != seg->total_bytes) {
        return JS_FAIL(JS_ERR_SEGMENT, "the segment's layout does not fit its size");
    }
    js_area_init(&seg->world_area, seg->base, &config, seg_area_offset(&config));
    js_clock_adopt(&header->clock);
    return JS_OK;
}

int32_t js_seg_attach(int32_t fd, js_seg **out)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS); /* before the size is read: it must not shrink any more */
    if (fstat(fd, &status) != 0) {
        return JS_FAIL_SYS("fstat of the segment");
    }
    if (!S_ISREG(status.st_mode) || (uint64_t)status.st_size < SEG_PAGE_BYTES) {
        return JS_FAIL(JS_ERR_SEGMENT, "file descriptor %d is not a segment", fd);
    }
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
        return JS_FAIL(JS_ERR_SEGMENT, "file descriptor %d is not a sealed memfd", fd);
    }
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
        return JS_FAIL_SYS("duplicating the segment's file descriptor");
    }
    js_seg *seg = NULL;
    int32_t result = seg_map(own, (uint64_t)status.st_size, &seg);
    if (result != JS_OK) {
        close(own);
        return result;
    }
    result = seg_validate(seg);
    if (result != JS_OK) {
        js_seg_detach(seg);
        return result;
    }
    *out = seg;
    return JS_OK;
}

int32_t js_seg_fd(const js_seg *seg)
{
    return seg->fd;
}

uint64_t js_seg_bytes(const js_seg *seg)
{
    return seg->total_bytes;
}

uint32_t js_seg_world(const js_seg *seg)
{
    return seg->world_area.config.world;
}

void js_seg_detach(js_seg *seg)
{
    if (seg == NULL) {
        return;
    }
    munmap(seg->base, seg->total_bytes);
    close(seg->fd);
    free(seg);
}
