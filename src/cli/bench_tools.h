// What the benches share: the machine's peaks, repeated timing, one result line.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "krait/cli/command.h"
#include "krait/tensor/context.h"

namespace krait::cli {

// What a device reaches, measured once a run: the ceilings that results are held against.
struct Peaks {
  // bytes/s: a sum over a buffer that no cache holds; of a GPU a copy, both ways counted
  double read = 0;
  double flops_f32 = 0;  // FLOP/s of a large matrix product
  double flops_bf16 = 0;
};
const Peaks& peaks_of(Device device);

// Seconds of each of `repeat` runs. The first should not be the first ever.
std::vector<double> time_runs(int64_t repeat, const std::function<void()>& run);

// Seconds of each of `repeat` runs of what `work` queues, by the device's clock, after one run that is not
// counted, and without what `prepare` does before each. A GPU records the work and replays it: the time
// between launches is that of a graph, and what it reads may lie in its cache.
std::vector<double> time_on_device(const Context& c, int64_t repeat,
                                   const std::function<void()>& prepare,
                                   const std::function<void()>& work);

// mean + scale times a number from -1 to 1, or an id below `ids`: a stretch is drawn and repeated, since drawing
// takes longer than what is timed.
void fill_random(const Tensor& t, uint64_t stream, double scale = 1, double mean = 0,
                 int64_t ids = 1);

Cost sum(const std::map<std::string, Cost>& costs);

struct BenchResult {
  OrderedJson about;            // "bench" and the sizes
  std::vector<double> seconds;  // of each run
  double tokens = 0;            // a run; 0: not counted in tokens
  size_t memory = 0;            // bytes in use at most; 0: not counted
  Cost cost;                    // a run, as the ops state it
  DType dtype = DType::f32;     // of matrix products
  Device device;
};
// Median and spread, rates, percent of the peaks: a line for people, or JSON.
void print_bench(const BenchResult& result, const Common& common);

// Forward, and backward where there is one, of the op with this name, or of all.
struct OpSizes;
void bench_op(const std::string& name, const OpSizes& sizes, int64_t repeat, const Common& common);

}  // namespace krait::cli
