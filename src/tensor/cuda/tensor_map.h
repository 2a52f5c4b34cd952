// How the tensor memory accelerator of compute capability 9.0 and later finds boxes of a matrix.
#pragma once
#include <cuda.h>

#include <cstdint>

namespace krait::cuda {

// Boxes of `box_rows` by 64 elements of a bfloat16 matrix (rows, columns) at `p`, 16 bytes aligned, `step` elements
// between rows, a multiple of 8. In shared memory the 16-byte places of a row are exchanged by the row (hopper.cuh).
CUtensorMap map_of_rows(const void* p, int64_t rows, int64_t columns, int64_t step, int box_rows);

// The same of a matrix (rows, parts, columns): boxes of `box_rows` by 64 columns of one part, `columns` a multiple of 8.
// Between parts `part_step` elements, a multiple of 8; 0: `columns`.
CUtensorMap map_of_parts(const void* p, int64_t rows, int64_t parts, int64_t columns, int64_t step,
                         int box_rows, int64_t part_step = 0);

// The same of `count` such matrices, all dense.
CUtensorMap map_of_matrices(const void* p, int64_t count, int64_t rows, int64_t parts,
                            int64_t columns, int box_rows);

}  // namespace krait::cuda
