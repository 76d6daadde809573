/* SPDX-License-Identifier: MIT
 * test_parallel.c: every chunk once, the lowest failure, after fork, callers side by side. */
#define _POSIX_C_SOURCE 200809L
#include "minunit.h"

#include "parallel.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N = 1000 };

typedef struct {
    int seen[N];
    size_t threads, fail_from;
} record;

static lens_status mark(void *ctx, size_t chunk, size_t thread) {
    record *r = ctx;
    r->seen[chunk]++;
    if (thread >= r->threads)
        return LENS_ENOMEM;
    return chunk >= r->fail_from ? LENS_EDOMAIN : LENS_OK;
}

static void test_every_chunk_once(void) {
    const int counts[] = {-3, 0, 1, 2, 7, 64, 1000};
    for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
        record r = {.threads = lens_threads(N, counts[k]), .fail_from = N};
        CHECK(lens_parallel(mark, &r, N, counts[k]) == LENS_OK);
        for (size_t i = 0; i < N; i++)
            CHECK(r.seen[i] == 1);
    }
}

static void test_no_chunks(void) {
    CHECK(lens_parallel(mark, NULL, 0, 4) == LENS_OK);
}

static lens_status fail_by_number(void *ctx, size_t chunk, size_t thread) {
    const size_t *first = ctx;
    (void)thread;
    if (chunk == *first)
        return LENS_EDOMAIN;
    return chunk > *first ? LENS_ENOCONV : LENS_OK;
}

static void test_lowest_failure_wins(void) {
    for (size_t first = 0; first < 40; first++)
        for (int n = 1; n < 20; n += 3)
            CHECK(lens_parallel(fail_by_number, &first, 60, n) == LENS_EDOMAIN);
}

static void test_thread_counts(void) {
    CHECK(lens_threads(10, 4) == 4 && lens_threads(2, 4) == 2 && lens_threads(0, 4) == 1);
    CHECK(lens_threads(1000, 1000) == LENS_MAX_THREADS && lens_threads(5, -1) == 1);
    CHECK(lens_chunk_rows(0) == 1 && lens_chunk_rows(1024) == 64 && lens_chunk_rows(1 << 20) == 1);
    CHECK(lens_n_chunks(0, 4) == 0 && lens_n_chunks(8, 4) == 2 && lens_n_chunks(9, 4) == 3);
}

static void *caller(void *arg) {
    record *r = arg;
    for (int i = 0; i < 20; i++)
        if (lens_parallel(mark, r, N, 3) != LENS_OK)
            r->threads = 0;
    return NULL;
}

static void test_callers_side_by_side(void) {
    enum { CALLERS = 4 };
    record *r = room(CALLERS, sizeof *r);
    pthread_t t[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        r[i].threads = 3;
        r[i].fail_from = N;
        CHECK(pthread_create(&t[i], NULL, caller, &r[i]) == 0);
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(t[i], NULL);
        CHECK(r[i].threads == 3 && r[i].seen[0] == 20 && r[i].seen[N - 1] == 20);
    }
    free(r);
}

static void test_works_after_fork(void) {
    record r = {.threads = 4, .fail_from = N};
    CHECK(lens_parallel(mark, &r, N, 4) == LENS_OK);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        _exit(lens_parallel(mark, &r, N, 4) == LENS_OK && r.seen[N - 1] == 2 ? 0 : 1);
    int status = 1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void) {
    RUN(test_every_chunk_once);
    RUN(test_no_chunks);
    RUN(test_lowest_failure_wins);
    RUN(test_thread_counts);
    RUN(test_callers_side_by_side);
    RUN(test_works_after_fork);
    return REPORT();
}
