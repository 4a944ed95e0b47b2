// Error numbers in words.

#pragma once

#include "abi.h"

inline const char* our_error_text(int32_t error) {
    switch (error) {
        case OK: return "no error";
        case BAD_DTYPE: return "number format that this op does not compute in";
        case BAD_ARGUMENT: return "sizes, factors or operands that make no sense";
        case OUT_OF_MEMORY: return "out of memory";
        default: return "unknown error";
    }
}
