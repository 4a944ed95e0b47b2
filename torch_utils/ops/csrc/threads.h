// How CPU ops share their work among threads.

#pragma once

#include <omp.h>
#include <stdint.h>

// Calls work(thread, first, last) for equal parts of `items` in each thread.
template <class Work>
void share(int64_t items, int threads, Work work) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
        work(thread, items * thread / team, items * (thread + 1) / team);
    }
}
