// What the CUDA library says about itself and about errors.

#include <cuda_runtime_api.h>

#include "errors.h"

EXPORT int32_t abi_version(void) { return ABI_VERSION; }
EXPORT const char* error_text(int32_t error) {
    return error > CUDA_ERROR ? cudaGetErrorString(static_cast<cudaError_t>(error - CUDA_ERROR)) : our_error_text(error);
}
