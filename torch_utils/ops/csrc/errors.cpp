// What the CPU library says about itself and about errors.

#include "errors.h"

EXPORT int32_t abi_version(void) { return ABI_VERSION; }
EXPORT const char* error_text(int32_t error) { return our_error_text(error); }
