// Kernels on rows at one distance: conversion and sums. bfloat16 where a flag says so, else float32.
#pragma once
#include <cstdint>

namespace krait::cuda {

struct RowsToConvert {
  const void* from;
  bool from_bf16;
  int64_t from_step;  // elements between rows
  void* to;
  bool to_bf16;
  int64_t to_step;
  int64_t rows, cols;
  bool add;          // to += from, rounded once
  float factor = 1;  // of `from`
};

void convert_rows(const RowsToConvert& r, void* stream);

// out[i] (+)= Σ_r rows[r, i] for i in [0, n), in float32 and a fixed order: sums of kRowsOfAPart rows first
// (more where a grid could not hold so many), in `parts`, scratch of (parts_of_sum(count), n); unused where
// that is 0.
constexpr int64_t kRowsOfAPart = 512;
constexpr int64_t rows_of_a_part(int64_t count) {
  const int64_t fewest = (count + 32767) / 32768;
  return fewest > kRowsOfAPart ? fewest : kRowsOfAPart;
}
constexpr int64_t parts_of_sum(int64_t count) {
  return count <= kRowsOfAPart ? 0 : (count + rows_of_a_part(count) - 1) / rows_of_a_part(count);
}
// Rows for each of the partial sums of `rows`, so few of them that sum_rows needs no parts.
constexpr int64_t rows_of_a_partial_sum(int64_t rows) {
  return rows <= kRowsOfAPart ? 1 : (rows + kRowsOfAPart - 1) / kRowsOfAPart;
}
void sum_rows(const void* rows, bool bf16, int64_t step, int64_t count, int64_t n, float* out,
              bool add, float* parts, void* stream);

}  // namespace krait::cuda
