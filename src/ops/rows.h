// Where the CPU's kernels of scans read and leave what has a row a token. Plain structs, which no instruction set's
// copy of a function comes with.
#pragma once
#include <cstdint>

namespace krait::ops {

// Rows over time of a tensor of float32 or bfloat16, at the first token and column of interest.
struct Rows {
  const void* data = nullptr;
  int64_t stride = 0;  // elements from token to token
  bool bf16 = false;
};

struct GradRows {
  void* data = nullptr;  // null: not wanted
  int64_t stride = 0;
  bool bf16 = false;
  bool add = false;
};

}  // namespace krait::ops
