// What surrounds the dense convolution of a modulated one: scaling of the channels before it; demodulation, noise, bias and activation after it.
//
// x, y and their gradients are of the type `dtype` and dense, [n, pixels, channels] in channels_last, else [n, channels, pixels]. The CPU has
// the former only. All the small tensors are float32, or float64 where `dtype` is: styles and scale [n, channels], noise [n, pixels] or
// [pixels], bias [channels]. The C interface of both libraries, as in abi.h.

#pragma once

#include "abi.h"

// modulate: y = x * styles.
// epilogue: y = clamp(gain * (u > 0 ? u : alpha * u)) with u = x * scale + noise + bias.
struct ModulationArgs {
    int32_t dtype;
    int32_t noise_per_sample;  // the noise is [n, pixels], else [pixels]
    int32_t channels_last;
    int32_t aligned;  // x, y and their gradients begin at multiples of 16 bytes; a GPU then takes 16 bytes at a time
    int64_t n, pixels, channels;
    double alpha, gain, clamp;  // clamp < 0: none
};

inline bool valid(const ModulationArgs* a) { return a && a->n >= 0 && a->pixels >= 0 && a->channels >= 0; }

EXPORT int32_t modulate_cpu(const ModulationArgs* args, const void* x, const void* styles, void* y, int32_t threads);

// dx, and dstyles [n, channels].
EXPORT int32_t modulate_backward_cpu(
    const ModulationArgs* args, const void* x, const void* styles, const void* dy, void* dx, void* dstyles, int32_t threads);

// noise and bias may be null.
EXPORT int32_t epilogue_cpu(const ModulationArgs* args, const void* x, const void* scale, const void* noise, const void* bias, void* y,
                            int32_t threads);

// dx, dscale [n, channels] and, with du the gradient of u, its sums over pixels, dbias [n, channels], and over channels, dnoise [n, pixels].
// dnoise may be null.
EXPORT int32_t epilogue_backward_cpu(const ModulationArgs* args, const void* x, const void* scale, const void* noise, const void* bias,
                                     const void* dy, void* dx, void* dscale, void* dbias, void* dnoise, int32_t threads);

// In how many parts the sums of the backward passes come on a GPU, to be added up by the caller: dstyles, dscale and dbias are
// [over_pixels, n, channels], dnoise is [over_channels, n, pixels].
EXPORT int32_t modulation_parts_cuda(const ModulationArgs* args, int64_t* over_pixels, int64_t* over_channels);

EXPORT int32_t modulate_cuda(const ModulationArgs* args, const void* x, const void* styles, void* y, int32_t device, void* stream);
EXPORT int32_t modulate_backward_cuda(const ModulationArgs* args, const void* x, const void* styles, const void* dy, void* dx, void* dstyles,
                                      int32_t device, void* stream);
EXPORT int32_t epilogue_cuda(const ModulationArgs* args, const void* x, const void* scale, const void* noise, const void* bias, void* y,
                             int32_t device, void* stream);
EXPORT int32_t epilogue_backward_cuda(const ModulationArgs* args, const void* x, const void* scale, const void* noise, const void* bias,
                                      const void* dy, void* dx, void* dscale, void* dbias, void* dnoise, int32_t device, void* stream);
