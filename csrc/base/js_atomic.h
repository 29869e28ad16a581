/* Every atomic operation on memory that two threads or processes share.
 *
 * The order is in the name: rlx relaxed, acq acquire, rel release. There are no stand-alone
 * fences, which ThreadSanitizer cannot follow. Compiled with JS_MODEL, each operation is a point
 * at which the model checker (tests/model) may switch to another thread. */
#ifndef JS_ATOMIC_H
#define JS_ATOMIC_H

#include "js_base.h"

#if defined(JS_MODEL)
void js_model_point(void);
#define JS_ATOMIC_POINT() js_model_point()
#else
#define JS_ATOMIC_POINT() ((void)0)
#endif

#define JS_ATOMIC_DEFINE(type, suffix)                                                             \
    JS_INLINE type js_load_acq_##suffix(const type *p)                                             \
    {                                                                                              \
        JS_ATOMIC_POINT();                                                                         \
        return __atomic_load_n(p, __ATOMIC_ACQUIRE);                                               \
    }                                                                                              \
    JS_INLINE type js_load_rlx_##suffix(const type *p)                                             \
    {                                                                                              \
        JS_ATOMIC_POINT();                                                                         \
        return __atomic_load_n(p, __ATOMIC_RELAXED);                                               \
    }                                                                                              \
    JS_INLINE void js_store_rel_##suffix(type *p, type value)                                      \
    {                                                                                              \
        JS_ATOMIC_POINT();                                                                         \
        __atomic_store_n(p, value, __ATOMIC_RELEASE);                                              \
    }                                                                                              \
    JS_INLINE void js_store_rlx_##suffix(type *p, type value)                                      \
    {                                                                                              \
        JS_ATOMIC_POINT();                                                                         \
        __atomic_store_n(p, value, __ATOMIC_RELAXED);                                              \
    }

JS_ATOMIC_DEFINE(uint16_t, u16)
JS_ATOMIC_DEFINE(uint32_t, u32)
JS_ATOMIC_DEFINE(uint64_t, u64)

/* Adds and returns the value before. */
JS_INLINE uint32_t js_add_seq_u32(uint32_t *p, uint32_t value)
{
    JS_ATOMIC_POINT();
    return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);
}

JS_INLINE uint32_t js_swap_acq_u32(uint32_t *p, uint32_t value)
{
    JS_ATOMIC_POINT();
    return __atomic_exchange_n(p, value, __ATOMIC_ACQ_REL);
}

/* The same, in the one order of all operations called seq; so are these loads. Two threads that
 * each swap a word and then load the other's: one of them sees the other's value. */
JS_INLINE uint32_t js_swap_seq_u32(uint32_t *p, uint32_t value)
{
    JS_ATOMIC_POINT();
    return __atomic_exchange_n(p, value, __ATOMIC_SEQ_CST);
}

JS_INLINE uint32_t js_load_seq_u32(const uint32_t *p)
{
    JS_ATOMIC_POINT();
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

JS_INLINE uint64_t js_add_seq_u64(uint64_t *p, uint64_t value)
{
    JS_ATOMIC_POINT();
    return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);
}

/* Replaces expected by value; false when *p held something else. */
JS_INLINE bool js_cas_seq_u32(uint32_t *p, uint32_t expected, uint32_t value)
{
    JS_ATOMIC_POINT();
    return __atomic_compare_exchange_n(p, &expected, value, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
}

JS_INLINE bool js_cas_seq_u64(uint64_t *p, uint64_t expected, uint64_t value)
{
    JS_ATOMIC_POINT();
    return __atomic_compare_exchange_n(p, &expected, value, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
}

/* A relaxed load after all loads before it, of plain memory too: it asks whether what has
 * been read still counts. An acquire load would only hold back the loads after it. */
JS_INLINE uint32_t js_load_last_u32(const uint32_t *p)
{
#if defined(__aarch64__)
    __asm__ __volatile__("dmb ishld" ::: "memory");
#else
    __asm__ __volatile__("" ::: "memory"); /* x86 does not reorder loads */
#endif
    return js_load_rlx_u32(p);
}

/* A hint to the core that this is a spin loop. */
JS_INLINE void js_cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield" ::: "memory");
#endif
}

#endif
