// What the benches share: the machine's peaks, repeated timing, one result line.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "krait/cli/command.h"
#include "krait/tensor/context.h"

namespace krait::cli {

// What a device reaches, measured once a run: the ceilings that results are held against.
struct Peaks {
  double read =
      0;  // bytes/s: a sum over a buffer that no cache holds; of a GPU a copy, both ways counted
  double flops_f32 = 0;  // FLOP/s of a large matrix product
  double flops_bf16 = 0;
};
const Peaks& peaks_of(Device device);

// Seconds of each of `repeat` runs, after one that is not counted.
std::vector<double> time_runs(int64_t repeat, const std::function<void()>& run);

struct BenchResult {
  OrderedJson about;            // "bench" and the sizes
  std::vector<double> seconds;  // of each run
  double tokens = 0;            // a run; 0: not counted in tokens
  Cost cost;                    // a run, as the ops state it
  DType dtype = DType::f32;     // of matrix products
  Device device;
};
// Median and spread, rates, percent of the peaks: a line for people, or JSON.
void print_bench(const BenchResult& result, const Common& common);

// The sizes of `krait bench op`.
struct OpSizes {
  int64_t B = 1, L = 512, D = 768, E = 1536, N = 16, W = 4, R = 48, V = 50280;
  DType dtype = DType::f32;
};
const std::vector<std::string>& bench_op_names();
// Forward, and backward where there is one.
void bench_op(const std::string& name, const OpSizes& sizes, int64_t repeat, const Common& common);

}  // namespace krait::cli
