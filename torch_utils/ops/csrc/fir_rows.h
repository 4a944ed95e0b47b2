// Tensors whose rows lie in one piece: NCHW, where every plane is an image, and channels_last.

#pragma once

#include "abi.h"

// Images as rows of pixels. Strides in elements.
struct Rows {
    int64_t groups, planes, inner;  // images in two dimensions, and numbers per pixel
    int64_t group_stride, plane_stride, row_stride;
};

// Finds the rows in the strides of a tensor. An axis of one element has any stride.
inline bool as_rows(const int64_t* stride, int64_t n, int64_t c, int64_t w, bool channels_last, Rows& rows) {
    const bool dense = channels_last ? (c == 1 || stride[1] == 1) && (w == 1 || stride[3] == c) : w == 1 || stride[3] == 1;
    rows = channels_last ? Rows{n, 1, c, stride[0], 0, stride[2]} : Rows{n, c, 1, stride[0], stride[1], stride[2]};
    return dense;
}
