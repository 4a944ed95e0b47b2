// The passes of modulation.h on a GPU: what single threads do. Written so that a CPU can run them one after another, which is how they are tested.
//
// Activations are seen as [n, outer, inner], where the inner axis lies in one piece: the channels in channels_last, else the pixels. A block
// takes a tile of the inner axis, in which each thread has a pack of neighbours, and walks down a part of the outer axis in chunks of several
// rows. Sums along the outer axis stay with the thread until the end; those along the inner one meet in shared memory after each chunk.
// Nothing is added atomically, and sizes alone decide what is added to what, so that sums have the same bits every time.

#pragma once

#include "modulation_elements.h"
#include "packs.h"

constexpr int TILE_THREADS = 256;  // of a block, at most
constexpr int64_t FORWARD_BLOCKS = 2048, BACKWARD_BLOCKS = 768;  // enough to fill a large GPU; each one of a backward pass adds partial sums

template <class T>
struct ModulationOperands {
    using A = typename Arithmetic<T>::type;
    const T* x;
    const A *scale, *noise, *bias;  // noise and bias may be null
    const T* dy;
    T* out;                      // y or dx
    A *dscale, *dbias, *dnoise;  // in parts; dnoise may be null
};

// How blocks share the work. There are none where there is nothing to do.
struct ModulationShares {
    int64_t n, outer, inner;
    int64_t tiles, splits;   // parts of the inner and of the outer axis; a block has one of each
    int64_t chunks;          // of the whole outer axis
    int32_t width, height;   // packs of a tile; rows that a block takes at once

    int64_t blocks() const { return n * tiles * splits; }
};

template <class T>
constexpr int tile_rows() {  // rows of a chunk that a thread has
    return sizeof(T) == 8 ? 2 : 4;
}

// Neighbours that a thread takes at once: 16 bytes of them, but for float64, which only tests use, and wherever some would be left over.
inline int tile_lanes(const ModulationArgs& a) {
    const int lanes = a.dtype == F64 ? 1 : a.dtype == F32 ? 4 : 8;
    return a.aligned && (a.channels_last ? a.channels : a.pixels) % lanes == 0 ? lanes : 1;
}

inline ModulationShares modulation_shares(const ModulationArgs& a, int threads, int64_t wanted_blocks) {
    auto parts = [](int64_t count, int64_t size) { return (count + size - 1) / size; };
    const int64_t outer = a.channels_last ? a.pixels : a.channels, inner = a.channels_last ? a.channels : a.pixels;
    ModulationShares to{a.n, outer, inner, 0, 0, 0, 0, 0};
    if (a.n == 0 || outer == 0 || inner == 0) return to;
    const int64_t packs = inner / tile_lanes(a);
    to.tiles = parts(packs, threads);
    to.width = (int32_t)parts(packs, to.tiles);
    to.height = threads / to.width;
    to.chunks = parts(outer, to.height * (a.dtype == F64 ? tile_rows<double>() : tile_rows<float>()));
    // Several chunks each, so that what a block does before and after them counts little.
    const int64_t most = parts(to.chunks, 4), wanted = parts(wanted_blocks, a.n * to.tiles);
    to.splits = wanted < most ? wanted : most;
    return to;
}

// ACTIVATED: the epilogue, else modulate, which has neither noise nor bias. A thread calls at(), then forward() for every chunk; or backward()
// for every chunk, after each of which all threads meet and call add_rows() where `meeting`, and in the end keep(), and store() after a meeting.
template <class T, int LANES, bool CHANNELS_LAST, bool ACTIVATED>
struct ModulationTiles {
    using A = typename Arithmetic<T>::type;
    static constexpr int ROWS = tile_rows<T>();
    // Kinds of sums: along pixels of du * x and, for the bias, of du; along channels of du, for the noise.
    static constexpr int OVER_PIXELS = ACTIVATED ? 2 : 1, OVER_CHANNELS = ACTIVATED ? 1 : 0;
    static constexpr int KEPT = CHANNELS_LAST ? OVER_PIXELS : OVER_CHANNELS, MET = CHANNELS_LAST ? OVER_CHANNELS : OVER_PIXELS;

    struct Memory {
        // Two chunks' worth, so that one meeting after each is enough. Rows are of odd length, for different banks of shared memory.
        A met[2][MET ? MET : 1][MET ? ROWS * TILE_THREADS * 3 / 2 : 1];
        A kept[KEPT ? KEPT : 1][KEPT ? TILE_THREADS * LANES : 1];
    };
    static_assert(sizeof(Memory) <= 48 * 1024, "what a block has without asking for more");

    ModulationShares shares;
    ModulationOperands<T> o;
    Epilogue<A> epilogue;
    bool noise_per_sample;

    // Where a thread works, and what it has there for all of its rows.
    struct Thread {
        int64_t n, tile, split, first_chunk, last_chunk;
        int64_t inner;  // first element of its pack
        int32_t column, row;
        bool active;
        A scale[CHANNELS_LAST ? LANES : 1], shift[LANES];
        A kept[KEPT ? KEPT : 1][LANES];
    };

    DEVICE Thread at(int64_t block, int thread) const {
        Thread t;
        t.tile = block % shares.tiles;
        t.split = block / shares.tiles % shares.splits;
        t.n = block / shares.tiles / shares.splits;
        t.first_chunk = shares.chunks * t.split / shares.splits;
        t.last_chunk = shares.chunks * (t.split + 1) / shares.splits;
        t.column = thread % shares.width;
        t.row = thread / shares.width;
        t.inner = (t.tile * shares.width + t.column) * LANES;
        t.active = t.row < shares.height && t.inner < shares.inner;
#pragma unroll
        for (int l = 0; l < LANES; l++) {
            const int64_t i = t.inner + l;
            if constexpr (CHANNELS_LAST) {
                t.scale[l] = t.active ? o.scale[t.n * shares.inner + i] : A(0);
                t.shift[l] = ACTIVATED && t.active && o.bias ? o.bias[i] : A(0);
            } else {
                t.shift[l] = ACTIVATED && t.active && o.noise ? o.noise[(noise_per_sample ? t.n * shares.inner : 0) + i] : A(0);
            }
            for (int k = 0; k < KEPT; k++) t.kept[k][l] = 0;
        }
        return t;
    }

    DEVICE void forward(const Thread& t, int64_t chunk) const {
        Pack<T, LANES> x[ROWS];
        RowNumbers rows[ROWS];
        load(t, chunk, o.x, x);
        load(t, chunk, rows);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int64_t outer = outer_of(t, chunk, r);
            if (!inside(t, outer)) continue;
            Pack<T, LANES> y;
#pragma unroll
            for (int l = 0; l < LANES; l++) {
                const A value = widen(x[r].value[l]), scale = scale_of(t, rows[r], l);
                narrow(ACTIVATED ? epilogue.value(value, scale, t.shift[l] + rows[r].shift) : value * scale, y.value[l]);
            }
            *reinterpret_cast<Pack<T, LANES>*>(o.out + offset(t, outer)) = y;
        }
    }

    DEVICE void backward(Thread& t, int64_t chunk, Memory& memory) const {
        Pack<T, LANES> x[ROWS], dy[ROWS];
        load(t, chunk, o.x, x);
        load(t, chunk, o.dy, dy);
        RowNumbers rows[ROWS];
        load(t, chunk, rows);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int64_t outer = outer_of(t, chunk, r);
            A with_x = 0, total = 0;  // sums along the pack
            if (inside(t, outer)) {
                Pack<T, LANES> dx;
#pragma unroll
                for (int l = 0; l < LANES; l++) {
                    const A value = widen(x[r].value[l]), scale = scale_of(t, rows[r], l), g = widen(dy[r].value[l]);
                    const A du = ACTIVATED ? epilogue.derivative(value, scale, t.shift[l] + rows[r].shift, g) : g;
                    narrow(du * scale, dx.value[l]);
                    if constexpr (CHANNELS_LAST) t.kept[0][l] += du * value;
                    if constexpr (KEPT > 0 && ACTIVATED) t.kept[KEPT - 1][l] += du;
                    with_x += du * value;
                    total += du;
                }
                *reinterpret_cast<Pack<T, LANES>*>(o.out + offset(t, outer)) = dx;
            }
            if (meeting() && t.row < shares.height) {
                auto& met = memory.met[chunk % 2];
                const int to = (r * shares.height + t.row) * pitch() + t.column;
                if constexpr (!CHANNELS_LAST) met[0][to] = with_x;
                if constexpr (ACTIVATED) met[MET - 1][to] = total;
            }
        }
    }

    // Whether sums along the inner axis are wanted.
    DEVICE bool meeting() const { return MET > 0 && (!CHANNELS_LAST || o.dnoise); }

    DEVICE void add_rows(const Thread& t, int thread, int threads, int64_t chunk, const Memory& memory) const {
        const int rows = ROWS * shares.height;
        for (int item = thread; item < MET * rows; item += threads) {
            const int kind = item / rows, row = item % rows;
            const int64_t outer = chunk * rows + row;
            if (outer >= shares.outer) continue;
            const A* from = memory.met[chunk % 2][kind] + row * pitch();
            A sum = 0;
            for (int column = 0; column < shares.width; column++) sum += from[column];
            A* to = CHANNELS_LAST ? o.dnoise : kind == 0 ? o.dscale : o.dbias;
            to[(t.tile * shares.n + t.n) * shares.outer + outer] = sum;
        }
    }

    // Whether sums along the outer axis are wanted.
    DEVICE bool keeping() const { return KEPT > 0 && (CHANNELS_LAST || o.dnoise); }

    DEVICE void keep(const Thread& t, Memory& memory) const {
        if (t.row >= shares.height) return;
#pragma unroll
        for (int k = 0; k < KEPT; k++)
#pragma unroll
            for (int l = 0; l < LANES; l++) memory.kept[k][(t.row * shares.width + t.column) * LANES + l] = t.kept[k][l];
    }

    DEVICE void store(const Thread& t, int thread, int threads, const Memory& memory) const {
        const int across = shares.width * LANES;
        for (int item = thread; item < KEPT * across; item += threads) {
            const int kind = item / across, at = item % across;
            const int64_t inner = t.tile * across + at;
            if (inner >= shares.inner) continue;
            A sum = 0;
            for (int row = 0; row < shares.height; row++) sum += memory.kept[kind][row * across + at];
            A* to = !CHANNELS_LAST ? o.dnoise : kind == 0 ? o.dscale : o.dbias;
            to[(t.split * shares.n + t.n) * shares.inner + inner] = sum;
        }
    }

  private:
    // Of one row: the scale, where it differs from row to row, and what is added in all of it.
    struct RowNumbers {
        A scale, shift;
    };

    DEVICE int pitch() const { return shares.width | 1; }
    DEVICE int64_t outer_of(const Thread& t, int64_t chunk, int r) const { return (chunk * ROWS + r) * shares.height + t.row; }
    DEVICE bool inside(const Thread& t, int64_t outer) const { return t.active && outer < shares.outer; }
    DEVICE int64_t offset(const Thread& t, int64_t outer) const { return (t.n * shares.outer + outer) * shares.inner + t.inner; }
    DEVICE static A scale_of(const Thread& t, const RowNumbers& row, int l) { return CHANNELS_LAST ? t.scale[l] : row.scale; }

    // All that a chunk needs is loaded before anything is stored, so that no load waits for another.
    DEVICE void load(const Thread& t, int64_t chunk, const T* from, Pack<T, LANES> (&to)[ROWS]) const {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int64_t outer = outer_of(t, chunk, r);
            if (inside(t, outer)) to[r] = *reinterpret_cast<const Pack<T, LANES>*>(from + offset(t, outer));
        }
    }

    DEVICE void load(const Thread& t, int64_t chunk, RowNumbers (&to)[ROWS]) const {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int64_t outer = outer_of(t, chunk, r);
            to[r] = {A(1), A(0)};
            if (!inside(t, outer)) continue;
            if constexpr (CHANNELS_LAST) {
                if (ACTIVATED && o.noise) to[r].shift = o.noise[(noise_per_sample ? t.n * shares.outer : 0) + outer];
            } else {
                to[r].scale = o.scale[t.n * shares.outer + outer];
                if (ACTIVATED && o.bias) to[r].shift = o.bias[outer];
            }
        }
    }
};

template <class Tiles, class T>
Tiles modulation_tiles(const ModulationArgs& a, const ModulationOperands<T>& o, int threads, int64_t blocks) {
    return {modulation_shares(a, threads, blocks), o, epilogue_of<typename Arithmetic<T>::type>(a), a.noise_per_sample != 0};
}
