/* Copying past the caches: to memory that another core is about to read and this one is not. */
#ifndef JS_COPY_H
#define JS_COPY_H

#include "js_base.h"

#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#define JS_COPY_HAS_STREAMING 1
#else
#define JS_COPY_HAS_STREAMING 0
#endif

/* Copies up to 48 bytes, without a call: few moves that may overlap. */
JS_INLINE void js_copy_short(uint8_t *to, const uint8_t *from, uint32_t bytes)
{
    if (bytes >= 16) {
        for (uint32_t at = 0; at + 16 < bytes; at += 16) {
            __builtin_memcpy(to + at, from + at, 16);
        }
        __builtin_memcpy(to + bytes - 16, from + bytes - 16, 16);
    } else if (bytes >= 8) {
        uint64_t last;
        __builtin_memcpy(&last, from + bytes - 8, 8);
        __builtin_memcpy(to, from, 8);
        __builtin_memcpy(to + bytes - 8, &last, 8);
    } else {
        for (uint32_t at = 0; at < bytes; at++) {
            to[at] = from[at];
        }
    }
}

/* Copies `bytes` to `to`, which lies at the beginning of a cache line; what follows in the last
 * line is overwritten. Complete, as any store, for whoever sees a later store with release order.
 * Where the processor has no such stores: memcpy. */
JS_INLINE void js_copy_streaming(uint8_t *to, const uint8_t *from, uint32_t bytes)
{
#if JS_COPY_HAS_STREAMING
    uint8_t last[JS_CACHE_LINE] JS_ALIGNED(JS_CACHE_LINE) = { 0 };
    uint32_t whole = bytes & ~(JS_CACHE_LINE - 1u);
    memcpy(last, from + whole, bytes - whole);
    for (uint32_t at = 0; at < bytes; at += JS_CACHE_LINE) {
        const uint8_t *line = at < whole ? from + at : last;
        for (uint32_t i = 0; i < JS_CACHE_LINE; i += sizeof(__m128i)) {
            __m128i value = _mm_loadu_si128((const __m128i *)(const void *)(line + i));
            _mm_stream_si128((__m128i *)(void *)(to + at + i), value);
        }
    }
    _mm_sfence(); /* such stores are ordered by nothing less */
#else
    memcpy(to, from, bytes);
#endif
}

#endif
