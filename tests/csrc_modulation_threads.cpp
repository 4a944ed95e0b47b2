// Runs what the threads of the CUDA kernels of modulation.cu do on a CPU, one thread after another and step by step, for tests/test_csrc_modulation.py.

#include <memory>
#include <vector>

#include "csrc_float16.h"
#include "modulation_tiles.h"

namespace {

// Of a launch: threads of a block, and how many blocks are wanted; the kernels' code is right for any numbers.
struct Grid {
    int threads;
    int64_t blocks;
};

template <class Tiles>
void forward_block(const Tiles& tiles, int64_t block, int threads) {
    for (int thread = threads; thread-- > 0;) {
        const auto t = tiles.at(block, thread);
        for (int64_t chunk = t.first_chunk; chunk < t.last_chunk; chunk++) tiles.forward(t, chunk);
    }
}

template <class Tiles>
void backward_block(const Tiles& tiles, int64_t block, int threads, typename Tiles::Memory& memory) {
    std::vector<typename Tiles::Thread> all;
    for (int thread = 0; thread < threads; thread++) all.push_back(tiles.at(block, thread));
    for (int64_t chunk = all[0].first_chunk; chunk < all[0].last_chunk; chunk++) {
        for (auto& t : all) tiles.backward(t, chunk, memory);
        for (int thread = 0; tiles.meeting() && thread < threads; thread++) tiles.add_rows(all[thread], thread, threads, chunk, memory);
    }
    if (!tiles.keeping()) return;
    for (auto& t : all) tiles.keep(t, memory);
    for (int thread = 0; thread < threads; thread++) tiles.store(all[thread], thread, threads, memory);
}

template <class T, int LANES, bool CHANNELS_LAST, bool ACTIVATED>
void run(const ModulationArgs& a, const ModulationOperands<T>& o, Grid grid) {
    using Tiles = ModulationTiles<T, LANES, CHANNELS_LAST, ACTIVATED>;
    const Tiles tiles = modulation_tiles<Tiles>(a, o, grid.threads, grid.blocks);
    const auto memory = std::make_unique<typename Tiles::Memory>();
    for (int64_t block = tiles.shares.blocks(); block-- > 0;) {
        if (o.dy)
            backward_block(tiles, block, grid.threads, *memory);
        else
            forward_block(tiles, block, grid.threads);
    }
}

template <class T, int LANES, bool ACTIVATED>
void run(const ModulationArgs& a, const ModulationOperands<T>& o, Grid grid) {
    a.channels_last ? run<T, LANES, true, ACTIVATED>(a, o, grid) : run<T, LANES, false, ACTIVATED>(a, o, grid);
}

template <class T, bool ACTIVATED>
void run(const ModulationArgs& a, void* const* p, Grid grid) {
    using A = typename Arithmetic<T>::type;
    auto small = [&](int i) { return static_cast<A*>(p[i]); };
    auto large = [&](int i) { return static_cast<T*>(p[i]); };
    const ModulationOperands<T> o{large(0), small(1), small(2), small(3), large(4), large(5), small(6), small(7), small(8)};
    if (tile_lanes(a) > 1)
        run<T, 16 / sizeof(T), ACTIVATED>(a, o, grid);
    else
        run<T, 1, ACTIVATED>(a, o, grid);
}

template <bool ACTIVATED>
int32_t run(const ModulationArgs& a, void* const* p, Grid grid) {
    switch (a.dtype) {
        case F32: run<float, ACTIVATED>(a, p, grid); return OK;
        case F64: run<double, ACTIVATED>(a, p, grid); return OK;
        case F16: run<float16, ACTIVATED>(a, p, grid); return OK;
        case BF16: run<bfloat16, ACTIVATED>(a, p, grid); return OK;
        default: return BAD_DTYPE;
    }
}

}  // namespace

// parts: over the pixels, over the channels.
EXPORT int32_t modulation_parts_threads(const ModulationArgs* a, int64_t* parts, int32_t threads, int64_t blocks) {
    const ModulationShares shares = modulation_shares(*a, threads, blocks);
    parts[a->channels_last ? 0 : 1] = shares.splits;
    parts[a->channels_last ? 1 : 0] = shares.tiles;
    return OK;
}

// operands: x, scale, noise, bias, dy (null for the forward pass), y or dx, dscale, dbias, dnoise.
EXPORT int32_t modulation_threads(const ModulationArgs* a, void* const* operands, int32_t activated, int32_t threads, int64_t blocks) {
    return activated ? run<true>(*a, operands, {threads, blocks}) : run<false>(*a, operands, {threads, blocks});
}
