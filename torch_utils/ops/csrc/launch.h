// How CUDA ops are launched: on the device and stream that are handed in, without allocation or waiting, so that graphs can capture it.

#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

#include "abi.h"

// Makes a device the current one for as long as it lives.
class OnDevice {
  public:
    explicit OnDevice(int device) {
        error = cudaGetDevice(&previous);
        if (error == cudaSuccess && previous != device) {
            error = cudaSetDevice(device);
            changed = error == cudaSuccess;
        }
        if (error != cudaSuccess) cudaGetLastError();  // told by `error`, and not once more by the next launch
    }
    ~OnDevice() {
        if (changed) cudaSetDevice(previous);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    cudaError_t error;

  private:
    int previous = 0;
    bool changed = false;
};

inline int32_t error_number(cudaError_t error) { return error == cudaSuccess ? OK : CUDA_ERROR + (int32_t)error; }

constexpr int THREADS = 256;

// Blocks for so many items, `per_block` each. Kernels loop, so that no number of items is too large for a grid.
inline unsigned grid(int64_t items, int64_t per_block) {
    return (unsigned)std::min<int64_t>((items + per_block - 1) / per_block, 0x7fffffff);
}
