/* Blocks of symmetric memory as users hold them. */
#include "js_comm.h"
#include "js_heap.h"
#include "js_status.h"

#include <stdlib.h>
#include <string.h>

struct js_block {
    js_heap *heap;
    uint64_t offset;
};

static int32_t block_new(js_comm *comm, uint64_t bytes, js_block **out)
{
    js_block *block = calloc(1, sizeof(*block));
    if (block == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a block of symmetric memory");
    }
    block->heap = comm->engine->heap;
    int32_t result = js_heap_alloc(block->heap, bytes, 0, &block->offset);
    if (result != JS_OK) {
        free(block);
        return result;
    }
    js_heap_retain(block->heap);
    result = js_heap_prefault(block->heap, block->offset, bytes);
    if (result != JS_OK) {
        js_block_free(block);
        return result;
    }
    *out = block;
    return JS_OK;
}

int32_t js_block_new(js_comm *comm, uint64_t bytes, uint32_t zeroed, js_block **out)
{
    JS_TRY(js_turn_hold(comm)); /* the heap goes when the last communicator is closed */
    int32_t result = block_new(comm, bytes, out);
    js_turn_let_go(comm);
    if (result == JS_OK && zeroed != 0) {
        memset(js_block_address(*out), 0, bytes);
    }
    return result;
}

void *js_block_address(const js_block *block)
{
    return js_heap_address(block->heap, block->offset);
}

void js_block_free(js_block *block)
{
    (void)js_heap_free(block->heap, block->offset);
    js_heap_release(block->heap);
    free(block);
}

void js_comm_heap_usage(js_comm *comm, js_heap_usage *out)
{
    js_heap_get_usage(comm->engine->heap, out);
}
