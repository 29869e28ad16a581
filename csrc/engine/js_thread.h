/* The engine thread: makes rounds for the communicators of its process in which something is under
 * way and nobody is inside, so that operations get on while the host or the device computes. */
#ifndef JS_THREAD_H
#define JS_THREAD_H

#include <jetstream/js_api.h>
#include <stdbool.h>

bool js_thread_is_running(const js_engine *engine);
/* There is something to do. Cheap while the thread is awake, or there is none. */
void js_thread_wake(js_engine *engine);
/* From inside: something is left in flight that nobody waits for. The thread looks soon. */
void js_thread_ask(js_comm *comm);
/* Waits for its end, and for that of the ticker. */
void js_thread_stop(js_engine *engine);
/* Starts the ticker, if there are other hosts and no engine thread: it makes a round now and then
 * for what is connected with them, so that they get answers, and repeats of what was lost, while
 * this process computes. Whoever is silent for long has therefore died, or cannot be reached. */
int32_t js_thread_start_ticker(js_engine *engine);
/* The engine's lock, from a thread that must not wait until the engine thread has slept. */
void js_thread_lock(js_engine *engine);
void js_thread_unlock(js_engine *engine);

#endif
