// Runs the CPU ops on operands that fill their memory to the last byte, for tests/test_csrc_builds.py to compile with sanitizers.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "abi.h"
#include "modulation.h"

namespace {

std::mt19937 generator(0);

int64_t draw(int64_t least, int64_t most) { return least + generator() % (most - least + 1); }

// Exactly so many bytes of zeros.
std::unique_ptr<char[]> memory(int64_t bytes) { return std::unique_ptr<char[]>(new char[bytes]()); }

void check(int32_t error) {
    if (error == OK) return;
    printf("error: %s\n", error_text(error));
    exit(1);
}

void set_strides(int64_t* stride, int64_t c, int64_t h, int64_t w, bool channels_last) {
    const int64_t last[4] = {c * h * w, 1, c * w, c}, first[4] = {c * h * w, h * w, w, 1};
    std::copy_n(channels_last ? last : first, 4, stride);
}

void run_upfirdn2d(Upfirdn2dArgs a, bool x_channels_last, bool y_channels_last, int bytes) {
    set_strides(a.x_stride, a.c, a.in_h, a.in_w, x_channels_last);
    set_strides(a.y_stride, a.c, a.out_h, a.out_w, y_channels_last);
    const auto x = memory(a.n * a.c * a.in_h * a.in_w * bytes), f = memory(a.fh * a.fw * 4), y = memory(a.n * a.c * a.out_h * a.out_w * bytes);
    for (int i = 0; i < (a.separable ? a.fw : a.fw * a.fh); i++) reinterpret_cast<float*>(f.get())[i] = draw(1, 5);
    check(upfirdn2d_cpu(&a, x.get(), reinterpret_cast<const float*>(f.get()), y.get(), 4));
}

// A wide margin before a narrow image, and a crop behind it: no output meets pixels only.
void try_margin() {
    Upfirdn2dArgs a{};
    a.dtype = F32, a.separable = 1, a.fw = a.fh = 4, a.up_x = a.up_y = 2, a.down_x = a.down_y = 1, a.gain = 1;
    a.n = 1, a.c = 16, a.in_h = 4, a.in_w = 1, a.pad_x0 = 6, a.pad_y0 = 2, a.out_h = 8, a.out_w = 2;
    run_upfirdn2d(a, true, true, 4);
}

void try_upfirdn2d(int dtype, int bytes) {
    const bool common = draw(0, 1), separable = draw(0, 1), channels_last = draw(0, 1);
    const int factors = draw(0, 2), taps = draw(0, 1) ? 12 : 4;
    Upfirdn2dArgs a{};
    a.dtype = dtype, a.separable = separable || (common && taps == 12), a.flip = draw(0, 1), a.gain = 2;
    a.fw = common ? taps : draw(1, 13), a.fh = a.separable || common ? a.fw : draw(1, 5);
    a.up_x = common ? 1 + (factors == 1) : draw(1, 3), a.up_y = common ? a.up_x : draw(1, 3);
    a.down_x = common ? 1 + (factors == 2) : draw(1, 3), a.down_y = common ? a.down_x : draw(1, 3);
    a.n = draw(1, 3), a.c = draw(0, 1) ? draw(1, 4) : draw(15, 40), a.in_h = draw(1, 20), a.in_w = draw(1, 20);
    a.pad_x0 = draw(-3, 8), a.pad_y0 = draw(-3, 8);
    a.out_h = (std::max<int64_t>(a.in_h * a.up_y + a.pad_y0 + draw(-3, 8) - a.fh, 0)) / a.down_y + 1;
    a.out_w = (std::max<int64_t>(a.in_w * a.up_x + a.pad_x0 + draw(-3, 8) - a.fw, 0)) / a.down_x + 1;
    run_upfirdn2d(a, channels_last, draw(0, 9) ? channels_last : !channels_last, bytes);
}

void try_bias_act(int dtype, int bytes) {
    BiasActArgs a{};
    a.dtype = dtype, a.act = draw(LINEAR, SWISH), a.order = draw(0, 2), a.alpha = 0.2, a.gain = 1.5, a.clamp = draw(0, 1) ? 1 : -1;
    a.channels = draw(1, 40), a.step = draw(0, 1) ? 1 : draw(1, 700);
    a.size = a.channels * a.step * draw(1, 90);
    const bool from_result = a.act <= LRELU && a.order > 0 && draw(0, 1);
    const auto x = memory(a.size * bytes), dy = memory(a.size * bytes), ddy = memory(a.size * bytes), y = memory(a.size * bytes);
    const auto b = memory(a.channels * bytes), out = memory(a.size * bytes);
    check(bias_act_cpu(&a, from_result ? nullptr : x.get(), draw(0, 1) ? b.get() : nullptr, from_result ? y.get() : nullptr, dy.get(), ddy.get(),
                       out.get(), 4));
}

void try_modulation(int dtype, int bytes) {
    ModulationArgs a{};
    a.dtype = dtype, a.channels_last = 1, a.noise_per_sample = draw(0, 1), a.n = draw(1, 5), a.pixels = draw(1, 300), a.channels = draw(1, 70);
    a.alpha = 0.2, a.gain = 1.5, a.clamp = draw(0, 1) ? 1 : -1;
    const int64_t size = a.n * a.pixels * a.channels * bytes, wide = dtype == F64 ? 8 : 4, small = a.n * a.channels * wide;
    const auto x = memory(size), y = memory(size), dy = memory(size), dx = memory(size), scale = memory(small), dscale = memory(small);
    const auto noise = memory((a.noise_per_sample ? a.n : 1) * a.pixels * wide), dnoise = memory(a.n * a.pixels * wide);
    const auto bias = memory(a.channels * wide), dbias = memory(small);
    const void *z = draw(0, 1) ? noise.get() : nullptr, *b = draw(0, 1) ? bias.get() : nullptr;
    check(modulate_cpu(&a, x.get(), scale.get(), y.get(), 4));
    check(modulate_backward_cpu(&a, x.get(), scale.get(), dy.get(), dx.get(), dscale.get(), 4));
    check(epilogue_cpu(&a, x.get(), scale.get(), z, b, y.get(), 4));
    void* dz = draw(0, 1) ? dnoise.get() : nullptr;
    check(epilogue_backward_cpu(&a, x.get(), scale.get(), z, b, dy.get(), dx.get(), dscale.get(), dbias.get(), dz, 4));
}

}  // namespace

int main() {
    const int dtypes[] = {F32, F64, BF16}, bytes[] = {4, 8, 2};
    try_margin();
    for (int i = 0; i < 1500; i++) {
        try_upfirdn2d(dtypes[i % 3], bytes[i % 3]);
        if (i % 5 == 0) try_bias_act(dtypes[i / 5 % 3], bytes[i / 5 % 3]);
        if (i % 5 == 1) try_modulation(dtypes[i / 5 % 3], bytes[i / 5 % 3]);
    }
    printf("done\n");
    return 0;
}
