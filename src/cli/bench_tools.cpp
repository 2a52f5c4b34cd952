#include "krait/cli/bench_tools.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>

#include "krait/base/clock.h"
#include "krait/base/rng.h"
#include "krait/base/threads.h"
#include "krait/infer/memory.h"
#include "krait/tensor/arena.h"
#include "krait/tensor/cpu/matmul.h"
#include "krait/tensor/graph.h"
#include "krait/tensor/products.h"
#include "krait/tensor/stopwatch.h"

namespace krait::cli {

namespace {

double best(const std::vector<double>& seconds) {
  return *std::min_element(seconds.begin(), seconds.end());
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return (v[(v.size() - 1) / 2] + v[v.size() / 2]) / 2;
}

double read_peak() {
  constexpr int64_t kWords = int64_t{1} << 25;  // 256 MiB
  constexpr int64_t kPiece = 1 << 16;
  Arena memory(kWords * sizeof(uint64_t));
  auto* words = static_cast<uint64_t*>(memory.take_low(kWords * sizeof(uint64_t)));
  parallel_ranges(kWords, kPiece,
                  [&](int64_t begin, int64_t end) { std::fill(words + begin, words + end, 1); });
  std::atomic<uint64_t> total = 0;
  const std::vector<double> seconds = time_runs(6, [&] {
    parallel_ranges(kWords, kPiece, [&](int64_t begin, int64_t end) {
      std::array<uint64_t, 8> sums = {};
      for (int64_t i = begin; i < end; i += 8)
        for (size_t k = 0; k < sums.size(); ++k) sums[k] += words[i + static_cast<int64_t>(k)];
      for (const uint64_t s : sums) total += s;
    });
  });
  require(total > 0, "bench: nothing was read");
  return kWords * sizeof(uint64_t) / best(seconds);
}

double matmul_peak(DType dtype) {
  constexpr int64_t kSize = 1024;
  Arena memory(4 * kSize * kSize * sizeof(float));
  const auto take = [&](DType t) {
    const Tensor m(memory.take_low(kSize * kSize * size_of(t)), t, {kSize, kSize});
    for (int64_t i = 0; i < m.numel(); ++i) set(m, i, static_cast<double>(i % 7) * 0.25 - 0.75);
    return cpu::matrix(m);
  };
  const cpu::Matrix a = take(dtype), b = take(dtype), c = take(DType::f32);
  const std::vector<double> seconds = time_runs(6, [&] { cpu::matmul(a, b, c); });
  return 2.0 * kSize * kSize * kSize / best(seconds);
}

// The fastest of some runs of `work`, several queued at once.
double best_on_gpu(Device device, const std::function<void()>& work) {
  constexpr int kRuns = 10;
  Stopwatch watch(device);
  work();
  double seconds = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 5; ++i) {
    watch.start();
    for (int k = 0; k < kRuns; ++k) work();
    seconds = std::min(seconds, watch.stop() / kRuns);
  }
  return seconds;
}

double copy_peak(Device device) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const DeviceMemory from(device, kBytes), to(device, kBytes);
  const Tensor a(from.data(), DType::u8, {kBytes}, device),
      b(to.data(), DType::u8, {kBytes}, device);
  return 2.0 * kBytes / best_on_gpu(device, [&] { copy_bytes(a, b); });
}

double matmul_peak_on_gpu(Device device, DType dtype) {
  constexpr int64_t kSize = 8192;
  Arena arena(size_t{1} << 30, device);
  Context c{.device = device, .arena = &arena};
  const auto take = [&](uint64_t stream) {
    const Tensor m = c.alloc({kSize, kSize}, dtype);
    fill_random(m, stream);  // zeros and few values would run faster than real data
    return m;
  };
  const Tensor a = take(1), b = take(2), y = c.alloc({kSize, kSize}, dtype);
  Scratch scratch(c);
  return 2.0 * kSize * kSize * kSize /
         best_on_gpu(device, [&] { multiply(c, matrix(a), matrix(b), y); });
}

}  // namespace

const Peaks& peaks_of(Device device) {
  static std::map<int, Peaks> found;  // by number of a GPU; -1: the CPU
  const bool gpu = device.type == Device::cuda;
  const auto [it, fresh] = found.try_emplace(gpu ? device.index : -1);
  if (fresh)
    it->second = gpu ? Peaks{copy_peak(device), matmul_peak_on_gpu(device, DType::f32),
                             matmul_peak_on_gpu(device, DType::bf16)}
                     : Peaks{read_peak(), matmul_peak(DType::f32), matmul_peak(DType::bf16)};
  return it->second;
}

std::vector<double> time_runs(int64_t repeat, const std::function<void()>& run) {
  std::vector<double> seconds;
  for (int64_t i = 0; i < repeat; ++i) {
    check_interrupt();
    const auto start = Clock::now();
    run();
    seconds.push_back(seconds_since(start));
  }
  return seconds;
}

std::vector<double> time_on_device(const Context& c, int64_t repeat,
                                   const std::function<void()>& prepare,
                                   const std::function<void()>& work) {
  Stopwatch watch(c.device, c.stream);
  const auto once = [&] {
    check_interrupt();
    prepare();
    watch.start();
    work();
    return watch.stop();
  };
  const double first = once();
  std::vector<double> seconds;
  if (c.device.type == Device::cpu) {
    for (int64_t i = 0; i < repeat; ++i) seconds.push_back(once());
    return seconds;
  }
  prepare();
  synchronize(c.device, c.stream);
  const Graph graph(c.device, c.stream, work);
  // The device's clock ticks in half microseconds: a short graph is replayed several times per
  // measurement.
  const int replays = std::clamp(static_cast<int>(2e-3 / first), 1, 100);
  for (int64_t i = 0; i <= repeat; ++i) {
    check_interrupt();
    watch.start();
    for (int k = 0; k < replays; ++k) graph.replay(c.stream);
    seconds.push_back(watch.stop() / replays);
  }
  seconds.erase(seconds.begin());
  return seconds;
}

void fill_random(const Tensor& t, uint64_t stream, double scale, double mean, int64_t ids) {
  constexpr int64_t kDrawn = (int64_t{1} << 20) - 3;  // no size of a model divides it
  const Philox rng{1, stream};
  const int64_t n = std::min(t.numel(), kDrawn);
  const Tensor flat = t.reshape({t.numel()});
  if (t.dtype == DType::i32) {
    std::vector<int32_t> drawn(static_cast<size_t>(n));
    for (size_t i = 0; i < drawn.size(); ++i)
      drawn[i] = static_cast<int32_t>(rng.words(i)[0] % static_cast<uint64_t>(ids));
    store(Tensor(drawn.data(), DType::i32, {n}), flat.slice(0, 0, n));
  } else {
    std::vector<float> drawn(static_cast<size_t>(n));
    for (size_t i = 0; i < drawn.size(); ++i)
      drawn[i] = static_cast<float>(mean + scale * (2 * rng.uniform(i) - 1));
    store(Tensor(drawn.data(), DType::f32, {n}), flat.slice(0, 0, n));
  }
  for (int64_t at = n; at < t.numel(); at *= 2) {
    const int64_t more = std::min(at, t.numel() - at);
    copy_bytes(flat.slice(0, 0, more), flat.slice(0, at, at + more));
  }
}

Cost sum(const std::map<std::string, Cost>& costs) {
  Cost total;
  for (const auto& [op, cost] : costs) {
    total.bytes += cost.bytes;
    total.flops += cost.flops;
  }
  return total;
}

void print_bench(const BenchResult& r, const Common& common) {
  const Peaks& peaks = peaks_of(r.device);
  const double time = median(r.seconds);
  const double gb = r.cost.bytes / time, flop = r.cost.flops / time;
  const double peak_flops = r.dtype == DType::bf16 ? peaks.flops_bf16 : peaks.flops_f32;
  OrderedJson j = r.about;
  j["dtype"] = name_of(r.dtype);
  j["device"] = describe(r.device).name;
  if (r.device.type == Device::cpu) j["threads"] = threads();
  j["repeat"] = r.seconds.size();
  j["median_s"] = time;
  j["min_s"] = best(r.seconds);
  j["max_s"] = *std::max_element(r.seconds.begin(), r.seconds.end());
  if (r.tokens > 0) j["tokens_per_s"] = r.tokens / time;
  if (r.memory > 0) j["memory_bytes"] = r.memory;
  j["gb_per_s"] = gb * 1e-9;
  j["gb_percent_of_peak"] = 100 * gb / peaks.read;
  j["gflop_per_s"] = flop * 1e-9;
  j["gflop_percent_of_peak"] = 100 * flop / peak_flops;
  j["peak_gb_per_s"] = peaks.read * 1e-9;
  j["peak_gflop_per_s"] = peak_flops * 1e-9;
  if (common.json) return print_json(j);
  std::string what;
  for (const auto& [key, value] : r.about.items())
    what += value.is_string() ? value.get<std::string>() + " " : key + " " + value.dump() + " ";
  print_line(
      "{}{}: {:.3f} ms ({:.3f} to {:.3f}){}{}  {:.2f} GB/s ({:.0f}% of {:.1f})  {:.1f} GFLOP/s "
      "({:.0f}% of {:.0f})",
      what, name_of(r.dtype), time * 1e3, best(r.seconds) * 1e3, j["max_s"].get<double>() * 1e3,
      r.tokens > 0 ? fmt::format("  {:.1f} tokens/s", r.tokens / time) : "",
      r.memory > 0 ? "  " + bytes_text(r.memory) : "", gb * 1e-9, 100 * gb / peaks.read,
      peaks.read * 1e-9, flop * 1e-9, 100 * flop / peak_flops, peak_flops * 1e-9);
  flush_output();
}

}  // namespace krait::cli
