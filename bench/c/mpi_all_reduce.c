/*
 * MPI_Allreduce (sum, float32, in place) of two processes, called from C: what a device's launch is
 * compared with.
 *
 * Build: mpicc -O3 -o mpi_all_reduce mpi_all_reduce.c
 * Usage: mpiexec -n 2 mpi_all_reduce BYTES:ITERATIONS...
 * Prints one JSON line per size: percentiles of the slower rank of each iteration.
 */
#define _GNU_SOURCE
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double mpi_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int mpi_compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static void mpi_measure(int rank, size_t bytes, size_t iterations)
{
    float *x = calloc(bytes, 1);
    double *mine = calloc(iterations, sizeof(*mine));
    double *slower = calloc(iterations, sizeof(*slower));
    if (x == NULL || mine == NULL || slower == NULL) {
        MPI_Abort(MPI_COMM_WORLD, 1);
        return;
    }
    for (size_t round = 0; round < 2; round++) { /* the first warms up */
        MPI_Barrier(MPI_COMM_WORLD);
        for (size_t i = 0; i < iterations; i++) {
            double start = mpi_now_us();
            MPI_Allreduce(MPI_IN_PLACE, x, (int)(bytes / 4), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
            mine[i] = mpi_now_us() - start;
        }
    }
    MPI_Reduce(mine, slower, (int)iterations, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    if (rank == 0) {
        qsort(slower, iterations, sizeof(*slower), mpi_compare);
        printf("{\"bytes\": %zu, \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f}\n", bytes,
               slower[iterations / 2], slower[iterations * 99 / 100],
               slower[iterations * 999 / 1000]);
        fflush(stdout);
    }
    free(x);
    free(mine);
    free(slower);
}

int main(int argc, char **argv)
{
    int rank;
    cpu_set_t core;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    CPU_ZERO(&core);
    CPU_SET(rank, &core);
    (void)sched_setaffinity(0, sizeof(core), &core);
    for (int i = 1; i < argc; i++) {
        char *colon;
        size_t bytes = strtoull(argv[i], &colon, 10);
        size_t iterations = *colon == ':' ? strtoull(colon + 1, NULL, 10) : 0;
        if (bytes < 4 || iterations == 0) {
            fprintf(stderr, "mpi_all_reduce: '%s': BYTES:ITERATIONS is needed\n", argv[i]);
            MPI_Abort(MPI_COMM_WORLD, 2);
        }
        mpi_measure(rank, bytes, iterations);
    }
    return MPI_Finalize();
}
