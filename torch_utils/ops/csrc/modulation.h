// What surrounds the dense convolution of a modulated one: scaling of the channels before it; demodulation, noise, bias and activation after it.
//
// x, y and their gradients are [n, pixels, channels], dense, of the type `dtype` (float32 or bfloat16); all the small tensors are float32:
// styles and scale [n, channels], noise [n, pixels] or [pixels], bias [channels]. The C interface of the CPU library, as in abi.h.

#pragma once

#include "abi.h"

// modulate: y = x * styles.
// epilogue: y = clamp(gain * (u > 0 ? u : alpha * u)) with u = x * scale + noise + bias.
struct ModulationArgs {
    int32_t dtype;
    int32_t noise_per_sample;  // the noise is [n, pixels], else [pixels]
    int64_t n, pixels, channels;
    double alpha, gain, clamp;  // clamp < 0: none
};

EXPORT int32_t modulate_cpu(const ModulationArgs* args, const void* x, const float* styles, void* y, int32_t threads);

// dx, and dstyles [n, channels].
EXPORT int32_t modulate_backward_cpu(
    const ModulationArgs* args, const void* x, const float* styles, const void* dy, void* dx, float* dstyles, int32_t threads);

// noise and bias may be null.
EXPORT int32_t epilogue_cpu(const ModulationArgs* args, const void* x, const float* scale, const float* noise, const float* bias, void* y,
                            int32_t threads);

// dx, dscale [n, channels] and, with du the gradient of u, its sums over pixels, dbias [n, channels], and over channels, dnoise [n, pixels].
// dnoise may be null.
EXPORT int32_t epilogue_backward_cpu(const ModulationArgs* args, const void* x, const float* scale, const float* noise, const float* bias,
                                     const void* dy, void* dx, float* dscale, float* dbias, float* dnoise, int32_t threads);
