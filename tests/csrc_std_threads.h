// Takes the place of csrc/threads.h where ThreadSanitizer watches: it knows what std::thread does, but not what OpenMP's threads do.

#pragma once

#include <cstdint>
#include <thread>
#include <vector>

template <class Work>
void share(int64_t items, int threads, Work work) {
    std::vector<std::thread> team;
    for (int64_t thread = 0; thread < threads; thread++)
        team.emplace_back([=, &work] { work(thread, items * thread / threads, items * (thread + 1) / threads); });
    for (std::thread& member : team) member.join();
}
