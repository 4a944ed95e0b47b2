// The C interface of the native ops: what Python calls through ctypes. It needs neither torch nor Python.
//
// All functions return 0 or an error number that error_text() puts into words. Null pointers mean absent operands.
// Whoever changes a struct, an enumeration or a signature raises ABI_VERSION, here and in the Python mirror.

#pragma once

#include <stdint.h>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

enum { ABI_VERSION = 2 };

enum DType : int32_t { F32 = 0, F64 = 1, F16 = 2, BF16 = 3 };  // F16 on CUDA only

// In the order of torch_utils.ops.bias_act.ACTIVATIONS.
enum Act : int32_t { LINEAR = 0, RELU = 1, LRELU = 2, TANH = 3, SIGMOID = 4, ELU = 5, SELU = 6, SOFTPLUS = 7, SWISH = 8 };

// Error numbers of ours; those of the CUDA runtime follow from CUDA_ERROR on.
enum Error : int32_t { OK = 0, BAD_DTYPE = 1, BAD_ARGUMENT = 2, OUT_OF_MEMORY = 3, CUDA_ERROR = 1000 };

// y[n, c, oy, ox] = sum over taps (i, j) of f[i, j] * padded[n, c, oy * down_y + i, ox * down_x + j], times gain.
// `padded` holds x[n, c, iy, ix] at (iy * up_y + pad_y0, ix * up_x + pad_x0) and zeros elsewhere; a negative pad crops.
// That is a correlation (flip != 0); with flip == 0 the filter is mirrored first, which makes it a convolution.
// What lies behind the last pixel counts as zero, so out_h and out_w say what pad_x1 and pad_y1 would.
struct Upfirdn2dArgs {
    int32_t dtype;
    int32_t fw, fh;     // taps, at least 1
    int32_t separable;  // f has fw taps, applied along both axes, and fh == fw; else f is [fh, fw], dense
    int32_t up_x, up_y, down_x, down_y;
    int32_t flip;
    int64_t n, c, in_h, in_w, out_h, out_w;
    int64_t pad_x0, pad_y0;
    int64_t x_stride[4], y_stride[4];  // N C H W, in elements; y does not overlap itself
    double gain;                       // once, on the result (not once per axis)
};

// order 0: out = clamp(gain * act(x + b)).
// order 1: out = dy * the derivative of order 0's result with respect to x.
// order 2: out = dy * ddy * the second derivative.
// Orders 1 and 2 need x (and b, where there is one), or saved_y where the derivative follows from it: see activations.h.
struct BiasActArgs {
    int32_t dtype;
    int32_t act;
    int32_t order;
    int64_t size;            // elements of x, dy, ddy, saved_y and out, all dense in the same order
    int64_t channels, step;  // element i has bias (i / step) % channels
    double alpha, gain, clamp;  // clamp < 0: none
};

EXPORT int32_t abi_version(void);
EXPORT const char* error_text(int32_t error);

EXPORT int32_t upfirdn2d_cpu(const Upfirdn2dArgs* args, const void* x, const float* f, void* y, int32_t threads);
EXPORT int32_t upfirdn2d_cuda(const Upfirdn2dArgs* args, const void* x, const float* f, void* y, int32_t device, void* stream);

EXPORT int32_t bias_act_cpu(
    const BiasActArgs* args, const void* x, const void* b, const void* saved_y, const void* dy, const void* ddy, void* out, int32_t threads);
EXPORT int32_t bias_act_cuda(const BiasActArgs* args, const void* x, const void* b, const void* saved_y, const void* dy, const void* ddy,
                             void* out, int32_t device, void* stream);
