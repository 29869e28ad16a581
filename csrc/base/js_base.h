/* The few macros that every file of the data plane uses. Imports nothing of jetstream. */
#ifndef JS_BASE_H
#define JS_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JS_CACHE_LINE 64

#define JS_LIKELY(x) __builtin_expect(!!(x), 1)
#define JS_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* The caller has to look at the result. */
#define JS_MUST_CHECK __attribute__((warn_unused_result))
#define JS_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define JS_NOINLINE __attribute__((noinline, cold))
#define JS_INLINE static inline __attribute__((always_inline))
#define JS_ALIGNED(n) __attribute__((aligned(n)))

#define JS_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#define JS_STATIC_ASSERT(cond, text) _Static_assert(cond, text)

JS_INLINE uint64_t js_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

JS_INLINE uint64_t js_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Rounds up to a multiple of align, which must be a power of two. */
JS_INLINE uint64_t js_round_up(uint64_t value, uint64_t align)
{
    return (value + align - 1) & ~(align - 1);
}

JS_INLINE bool js_is_pow2(uint64_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

#endif
