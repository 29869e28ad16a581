/* The protocol under the simulator: many seeds, each its own network, traffic and faults; nothing
 * that must hold is violated, and when the network heals everything comes through.
 *
 *     test_sim [COUNT [FIRST SEED]]     for long runs */
#include "js_test.h"

#include <jetstream/js_api.h>

#include <stdlib.h>

#define SIM_SEEDS 3000u

static bool sim_try(uint64_t seed, js_sim_result *sum)
{
    js_sim_config config;
    js_sim_result result;
    js_sim_draw(seed, &config);
    if (js_sim_run(&config, &result) != JS_OK || result.verdict != JS_SIM_OK) {
        fprintf(stderr, "seed %" PRIu64 ": %s on side %u after %" PRIu64 " ns\n", seed,
                js_sim_verdict_name(result.verdict), result.violator, result.time_ns);
        return false;
    }
    sum->frames_sent += result.frames_sent;
    sum->retransmits += result.retransmits;
    sum->spurious += result.spurious;
    sum->timeouts += result.timeouts;
    sum->probes += result.probes;
    sum->duplicates += result.duplicates;
    sum->refused += result.refused;
    sum->network_drops += result.network_drops;
    sum->time_ns += result.close_ns;
    return true;
}

int main(int argc, char **argv)
{
    uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : SIM_SEEDS;
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    js_sim_result sum = { 0 };
    uint64_t failures = 0;
    for (uint64_t seed = first; seed < first + count && failures < 10; seed++) {
        failures += sim_try(seed, &sum) ? 0 : 1;
    }
    printf("%" PRIu64 " seeds, %" PRIu64 " virtual ms: %" PRIu64 " frames, %" PRIu64
           " retransmits (%" PRIu64 " spurious), %" PRIu64 " time-outs, %" PRIu64
           " probes, %" PRIu64 " duplicates, %" PRIu64 " refused, %" PRIu64 " dropped\n",
           count, sum.time_ns / 1000000, sum.frames_sent, sum.retransmits, sum.spurious,
           sum.timeouts, sum.probes, sum.duplicates, sum.refused, sum.network_drops);
    return failures == 0 ? 0 : JS_TEST_EXIT_FAIL;
}
