// upfirdn2d on a GPU: what single threads do. Written so that a CPU can run them one after another, which is how they are tested.
//
// Two kernels for the common filters. PatchFilter is for 4x4 taps: a thread makes a patch of outputs and keeps all in registers.
// TileFilter is for 12 separable taps: a block makes a tile of outputs through shared memory, along rows, then down columns.
// Both count outputs in windows (fir.h).

#pragma once

#include "abi.h"
#include "fir.h"
#include "fir_rows.h"
#include "numbers.h"
#include "packs.h"

// T: element. LANES: neighbouring channels that a thread takes at once. PATCH_H, PATCH_W: windows of a patch.
template <class T, class Index, int LANES, int UP, int DOWN, int PATCH_H, int PATCH_W>
struct PatchFilter {
    using A = typename Arithmetic<T>::type;
    static constexpr int TAPS = 4, MET = TAPS / UP;
    static constexpr int ROWS = MET + (PATCH_H - 1) * DOWN, COLUMNS = MET + (PATCH_W - 1) * DOWN;

    // Pixels hold `inner` neighbouring channels and are inner apart; images stand in two dimensions.
    Index planes, inner, in_h, in_w, out_h, out_w;
    Index x_group, x_plane, x_row, y_group, y_plane, y_row;
    Index first_y, first_x, early_y, early_x;
    Index patches_y, patches_x;
    int64_t threads;

    // taps: 4x4 of the correlation.
    DEVICE void run(Index thread, const T* x, const A* taps, T* y) const {
        const Index packs = inner / LANES;
        const Index lane = thread % packs * LANES;
        thread /= packs;
        const Index wx = thread % patches_x * PATCH_W;
        thread /= patches_x;
        const Index wy = thread % patches_y * PATCH_H;
        thread /= patches_y;
        const Index plane = thread % planes, group = thread / planes;
        x += group * x_group + plane * x_plane + lane;
        y += group * y_group + plane * y_plane + lane;

        A sums[PATCH_H * UP][PATCH_W * UP][LANES] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            A row[COLUMNS][LANES];
            load_row(x, first_y + wy * DOWN + r, first_x + wx * DOWN, row);
#pragma unroll
            for (int i = 0; i < PATCH_H * UP; i++) {
                const int k = r - i / UP * DOWN;
                if (k >= 0 && k < MET) add_row(row, taps + window_tap(i % UP, k, UP) * TAPS, sums[i]);
            }
        }
        store(sums, wy * UP - early_y, wx * UP - early_x, y);
    }

    DEVICE void load_row(const T* x, Index iy, Index ix, A (&row)[COLUMNS][LANES]) const {
        const bool inside_y = iy >= 0 && iy < in_h;
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            Pack<T, LANES> pack;
            const bool inside = inside_y && ix + j >= 0 && ix + j < in_w;
            if (inside) pack = *reinterpret_cast<const Pack<T, LANES>*>(x + iy * x_row + (ix + j) * inner);
#pragma unroll
            for (int l = 0; l < LANES; l++) row[j][l] = inside ? widen(pack.value[l]) : A(0);
        }
    }

    // Adds what one row of taps makes of one row of pixels.
    DEVICE static void add_row(const A (&row)[COLUMNS][LANES], const A* taps, A (&sums)[PATCH_W * UP][LANES]) {
#pragma unroll
        for (int j = 0; j < PATCH_W * UP; j++)
#pragma unroll
            for (int k = 0; k < MET; k++)
#pragma unroll
                for (int l = 0; l < LANES; l++) sums[j][l] += taps[window_tap(j % UP, k, UP)] * row[j / UP * DOWN + k][l];
    }

    DEVICE void store(const A (&sums)[PATCH_H * UP][PATCH_W * UP][LANES], Index oy, Index ox, T* y) const {
#pragma unroll
        for (int i = 0; i < PATCH_H * UP; i++)
#pragma unroll
            for (int j = 0; j < PATCH_W * UP; j++) {
                Pack<T, LANES> pack;
#pragma unroll
                for (int l = 0; l < LANES; l++) narrow(sums[i][j][l], pack.value[l]);
                const bool inside = oy + i >= 0 && oy + i < out_h && ox + j >= 0 && ox + j < out_w;
                if (inside) *reinterpret_cast<Pack<T, LANES>*>(y + (oy + i) * y_row + (ox + j) * inner) = pack;
            }
    }
};

// Tap `i` of the 4x4 that PatchFilter takes.
template <class A>
DEVICE A patch_tap(const float* f, int i, bool separable, bool flip, AxisGains gains) {
    const int row = stored_tap(i / 4, 4, flip), column = stored_tap(i % 4, 4, flip);
    return separable ? A(f[row] * gains.y) * A(f[column] * gains.x) : A(f[row * 4 + column] * gains.x);
}

// Geometry of a tile. LANES: neighbouring channels in a tile; 1 for planes. RUN: windows that a thread makes in a row.
template <class A, int UP, int DOWN, bool CHANNELS>
struct TileShape {
    static constexpr int TAPS = 12, MET = TAPS / UP, RUN = 4;
    static constexpr int LANES = CHANNELS ? (DOWN == 2 ? 32 : 64) / (int)sizeof(A) : 1;
    static constexpr int WINDOWS_X = (CHANNELS ? 8 : 32) / (CHANNELS ? 1 : UP), WINDOWS_Y = CHANNELS ? 8 : 16 / UP;
    static constexpr int OUT_X = WINDOWS_X * UP, OUT_Y = WINDOWS_Y * UP;
    static constexpr int IN_X = MET + (WINDOWS_X - 1) * DOWN, IN_Y = MET + (WINDOWS_Y - 1) * DOWN;
    // Odd lengths, so that threads at the same column of neighbouring rows meet different banks of shared memory.
    static constexpr int IN_PITCH = (IN_X | 1) * LANES, MIDDLE_PITCH = (OUT_X | 1) * LANES;
};

template <class A, int UP, int DOWN, bool CHANNELS>
struct TileMemory {
    using Shape = TileShape<A, UP, DOWN, CHANNELS>;
    A taps_x[Shape::TAPS], taps_y[Shape::TAPS];  // of the correlation
    A in[Shape::IN_Y * Shape::IN_PITCH];
    A middle[Shape::IN_Y * Shape::MIDDLE_PITCH];  // filtered along the rows
};

// The steps of a block: load, along_rows, down_columns; between them all of its threads meet. The taps stay from tile to tile.
template <class T, class Index, int UP, int DOWN, bool CHANNELS>
struct TileFilter {
    using A = typename Arithmetic<T>::type;
    using Shape = TileShape<A, UP, DOWN, CHANNELS>;
    using Memory = TileMemory<A, UP, DOWN, CHANNELS>;
    static_assert(sizeof(Memory) <= 48 * 1024, "what a block has without asking for more");

    Index c, in_h, in_w, out_h, out_w;
    Index x_stride[4], y_stride[4];
    Index first_y, first_x, early_y, early_x;
    Index tiles_y, tiles_x, tiles_c;
    int64_t blocks;
    int32_t flip;
    AxisGains gains;

    // Where a block works: image, first channel and first windows.
    struct Place {
        Index n, c, wy, wx;
    };

    DEVICE Place place(Index block) const {
        const Index wx = block % tiles_x, wy = block / tiles_x % tiles_y, c_and_n = block / tiles_x / tiles_y;
        return {c_and_n / tiles_c, c_and_n % tiles_c * Shape::LANES, wy * Shape::WINDOWS_Y, wx * Shape::WINDOWS_X};
    }

    DEVICE void load_taps(int thread, int threads, const float* f, Memory& memory) const {
        for (int i = thread; i < Shape::TAPS; i += threads) {
            const float tap = f[stored_tap(i, Shape::TAPS, flip)];
            memory.taps_x[i] = tap * gains.x;
            memory.taps_y[i] = tap * gains.y;
        }
    }

    DEVICE void load(int thread, int threads, const Place& at, const T* x, Memory& memory) const {
        x += at.n * x_stride[0];
        for (int item = thread; item < Shape::IN_Y * Shape::IN_X * Shape::LANES; item += threads) {
            const int lane = item % Shape::LANES, column = item / Shape::LANES % Shape::IN_X, row = item / Shape::LANES / Shape::IN_X;
            const Index iy = first_y + at.wy * DOWN + row, ix = first_x + at.wx * DOWN + column, channel = at.c + lane;
            const bool inside = iy >= 0 && iy < in_h && ix >= 0 && ix < in_w && channel < c;
            A value = 0;
            if (inside) value = widen(x[channel * x_stride[1] + iy * x_stride[2] + ix * x_stride[3]]);
            memory.in[row * Shape::IN_PITCH + column * Shape::LANES + lane] = value;
        }
    }

    DEVICE void along_rows(int thread, int threads, Memory& memory) const {
        for (int item = thread; item < Shape::IN_Y * (Shape::WINDOWS_X / Shape::RUN) * Shape::LANES; item += threads) {
            const int lane = item % Shape::LANES, row = item / Shape::LANES % Shape::IN_Y, run = item / Shape::LANES / Shape::IN_Y * Shape::RUN;
            A sums[Shape::RUN * UP];
            filter_run(memory.in + row * Shape::IN_PITCH + run * DOWN * Shape::LANES + lane, Shape::LANES, memory.taps_x, sums);
            A* to = memory.middle + row * Shape::MIDDLE_PITCH + run * UP * Shape::LANES + lane;
#pragma unroll
            for (int o = 0; o < Shape::RUN * UP; o++) to[o * Shape::LANES] = sums[o];
        }
    }

    DEVICE void down_columns(int thread, int threads, const Place& at, const Memory& memory, T* y) const {
        y += at.n * y_stride[0];
        for (int item = thread; item < Shape::OUT_X * (Shape::WINDOWS_Y / Shape::RUN) * Shape::LANES; item += threads) {
            const int lane = item % Shape::LANES, column = item / Shape::LANES % Shape::OUT_X, run = item / Shape::LANES / Shape::OUT_X * Shape::RUN;
            A sums[Shape::RUN * UP];
            filter_run(memory.middle + run * DOWN * Shape::MIDDLE_PITCH + column * Shape::LANES + lane, Shape::MIDDLE_PITCH, memory.taps_y, sums);
            const Index ox = at.wx * UP - early_x + column, channel = at.c + lane;
            if (ox < 0 || ox >= out_w || channel >= c) continue;
            T* to = y + channel * y_stride[1] + ox * y_stride[3];
#pragma unroll
            for (int o = 0; o < Shape::RUN * UP; o++) {
                const Index oy = (at.wy + run) * UP - early_y + o;
                if (oy >= 0 && oy < out_h) narrow(sums[o], to[oy * y_stride[2]]);
            }
        }
    }

    // RUN windows along one axis, of which pixels are `step` apart.
    DEVICE static void filter_run(const A* from, int step, const A* taps, A (&sums)[Shape::RUN * UP]) {
        A pixels[Shape::MET + (Shape::RUN - 1) * DOWN];
#pragma unroll
        for (int k = 0; k < Shape::MET + (Shape::RUN - 1) * DOWN; k++) pixels[k] = from[k * step];
#pragma unroll
        for (int o = 0; o < Shape::RUN * UP; o++) {
            sums[o] = 0;
#pragma unroll
            for (int k = 0; k < Shape::MET; k++) sums[o] += taps[window_tap(o % UP, k, UP)] * pixels[o / UP * DOWN + k];
        }
    }
};

// Whether the op's numbers fit 32 bits, with room for the edges of tiles.
inline bool fits_32_bits(const Upfirdn2dArgs& a) {
    const int64_t limit = int64_t(1) << 30;
    // A tensor's numbers are counted, and its memory is walked; nothing adds the one to the other.
    auto fits = [&](const int64_t* stride, int64_t n, int64_t c, int64_t h, int64_t w) {
        return n * c * h * w < limit && n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3] < limit;
    };
    auto axis = [&](int64_t in, int64_t up, int64_t out, int64_t down, int64_t pad, int64_t taps) {
        return in < limit / up && out < limit / down && pad > -limit && pad < limit && taps < limit / up;
    };
    return axis(a.in_h, a.up_y, a.out_h, a.down_y, a.pad_y0, a.fh) && axis(a.in_w, a.up_x, a.out_w, a.down_x, a.pad_x0, a.fw) &&
           fits(a.x_stride, a.n, a.c, a.in_h, a.in_w) && fits(a.y_stride, a.n, a.c, a.out_h, a.out_w);
}

template <class Filter>
Filter patch_filter(const Upfirdn2dArgs& a, const Rows& x, const Rows& y, int lanes, int up, int patch_h, int patch_w) {
    const Windows wy = windows_of(up, a.pad_y0, a.out_h), wx = windows_of(up, a.pad_x0, a.out_w);
    const int64_t patches_y = (wy.count + patch_h - 1) / patch_h, patches_x = (wx.count + patch_w - 1) / patch_w;
    Filter to;
    to.planes = x.planes, to.inner = x.inner;
    to.in_h = a.in_h, to.in_w = a.in_w, to.out_h = a.out_h, to.out_w = a.out_w;
    to.x_group = x.group_stride, to.x_plane = x.plane_stride, to.x_row = x.row_stride;
    to.y_group = y.group_stride, to.y_plane = y.plane_stride, to.y_row = y.row_stride;
    to.first_y = wy.first, to.first_x = wx.first, to.early_y = wy.early, to.early_x = wx.early;
    to.patches_y = patches_y, to.patches_x = patches_x;
    to.threads = x.groups * x.planes * patches_y * patches_x * (x.inner / lanes);
    return to;
}

template <class Filter>
Filter tile_filter(const Upfirdn2dArgs& a, int up) {
    using Shape = typename Filter::Shape;
    const Windows wy = windows_of(up, a.pad_y0, a.out_h), wx = windows_of(up, a.pad_x0, a.out_w);
    const int64_t tiles_y = (wy.count + Shape::WINDOWS_Y - 1) / Shape::WINDOWS_Y, tiles_x = (wx.count + Shape::WINDOWS_X - 1) / Shape::WINDOWS_X;
    const int64_t tiles_c = (a.c + Shape::LANES - 1) / Shape::LANES;
    Filter to;
    to.c = a.c, to.in_h = a.in_h, to.in_w = a.in_w, to.out_h = a.out_h, to.out_w = a.out_w;
    for (int i = 0; i < 4; i++) to.x_stride[i] = a.x_stride[i], to.y_stride[i] = a.y_stride[i];
    to.first_y = wy.first, to.first_x = wx.first, to.early_y = wy.early, to.early_x = wx.early;
    to.tiles_y = tiles_y, to.tiles_x = tiles_x, to.tiles_c = tiles_c;
    to.blocks = a.n * tiles_c * tiles_y * tiles_x;
    to.flip = a.flip;
    to.gains = axis_gains(a);
    return to;
}
