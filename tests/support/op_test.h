// What the tests of every op share: memory that starts as NaN with sentinels around it, random tensors,
// comparison with a double oracle, gradients by the complex-step method, bit comparison.
//
// KRAIT_TEST_DEVICE=cuda in the environment runs the same tests on a GPU. All tensors of a test then lie in
// memory of the host that the GPU reaches too, and each kernel is waited for: tests write and read in place.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "krait/autograd/tape.h"
#include "krait/base/rng.h"
#include "krait/base/threads.h"
#include "krait/tensor/context.h"
#include "krait/testing/errors.h"

namespace krait::testing {

using Values = std::vector<double>;
using Complex = std::complex<double>;
using ComplexValues = std::vector<Complex>;

// How a random input is made: mean + scale * normal. strided: its rows are a slice of wider rows, the
// rest of which is NaN. watched: a variable (of the wide tensor where strided).
struct Input {
  double mean = 0, scale = 1;
  bool strided = false;
  bool watched = true;
};

// The first n normal numbers of a seed: tests draw the same ones again and again.
inline const std::vector<double>& first_normals(uint64_t seed, int64_t n) {
  static std::unordered_map<uint64_t, std::vector<double>> drawn;
  std::vector<double>& v = drawn[seed];
  const Philox rng{seed, 0x7e57};
  for (size_t i = v.size(); i < static_cast<size_t>(n); ++i) v.push_back(rng.normal(i));
  return v;
}

inline Device test_device() {
  static const Device device = [] {
    const char* name = std::getenv("KRAIT_TEST_DEVICE");
    ::setenv("CUDA_LAUNCH_BLOCKING", "1", 1);  // read when the driver starts
    return find_device(name ? name : "cpu");
  }();
  return device;
}

// For tests of what only the CPU has, first thing in them.
#define KRAIT_ONLY_ON_CPU(reason) \
  if (::krait::testing::test_device().type != ::krait::Device::cpu) GTEST_SKIP() << (reason)

// A context on the test's device whose arena is filled with NaN, with a tape when `record` is set, and tensors
// owned by the test with sentinels on both sides, checked at the end of its life.
class TestContext {
 public:
  explicit TestContext(bool record = false, size_t arena_bytes = size_t{16} << 20)
      : arena(DeviceMemory::shared_with(test_device(), arena_bytes)) {
    base_ = static_cast<std::byte*>(arena.take_low(0));
    refill();
    c.arena = &arena;
    c.device = test_device();
    if (record) c.tape = &tape;
  }
  ~TestContext() { expect_sentinels(); }
  TestContext(const TestContext&) = delete;
  TestContext& operator=(const TestContext&) = delete;

  Arena arena;
  Tape tape;
  Context c;

  // Forgets everything in the arena and fills it with NaN again.
  void refill() {
    synchronize(test_device(), nullptr);
    tape.reset();
    arena.reset();
    std::memset(base_, 0xFF, arena.capacity());
  }

  // A contiguous tensor of NaN (of -1 for integers).
  Tensor tensor(const Shape& shape, DType dtype) {
    const size_t n = static_cast<size_t>(shape.numel()) * size_of(dtype);
    Block& b = blocks_.emplace_back();
    b.size = n;
    if (test_device().type == Device::cpu) {  // from the heap, which the address sanitizer watches
      b.heap = std::make_unique<std::byte[]>(n + 3 * kGuard);
      b.memory = b.heap.get();
    } else {
      b.shared = DeviceMemory::shared_with(test_device(), n + 3 * kGuard);
      b.memory = b.shared.data();
    }
    std::memset(b.memory, kGuardByte, n + 3 * kGuard);
    b.begin = b.memory + (kGuard - reinterpret_cast<uintptr_t>(b.memory) % kGuard) + kGuard;
    std::memset(b.begin, 0xFF, n);
    return Tensor(b.begin, dtype, shape, test_device());
  }

  Tensor random(const Shape& shape, DType dtype, uint64_t seed, const Input& in = {}) {
    Shape whole_shape = shape;
    if (in.strided) whole_shape[-1] += 8;
    Tensor t = tensor(whole_shape, dtype);
    if (in.watched && c.tape) tape.watch(t);
    if (in.strided) t = t.slice(-1, 3, 3 + shape[-1]);
    const std::vector<double>& normals = first_normals(seed, t.numel());
    const Tensor flat = in.strided ? t : t.reshape({t.numel()});  // elements are found faster in it
    for (int64_t i = 0; i < t.numel(); ++i)
      set(flat, i, in.mean + in.scale * normals[static_cast<size_t>(i)]);
    return t;
  }

  Tensor from(const Values& values, const Shape& shape, DType dtype, bool watched = true) {
    Tensor t = tensor(shape, dtype);
    if (watched && c.tape) tape.watch(t);
    for (int64_t i = 0; i < t.numel(); ++i) set(t, i, values[static_cast<size_t>(i)]);
    return t;
  }

  // Makes `cotangent` the gradient of the result `y`.
  void seed_grad(const Tensor& y, const Values& cotangent) {
    const GradTarget g = tape.grad_into(c, y);
    synchronize(test_device(), nullptr);
    ASSERT_TRUE(static_cast<bool>(g.grad)) << "the result is no variable";
    for (int64_t i = 0; i < g.grad.numel(); ++i)
      set(g.grad, i, (g.add ? get(g.grad, i) : 0.0) + cotangent[static_cast<size_t>(i)]);
  }

  // Nothing was written around the tensors of this context, nor between the two ends of the arena.
  void expect_sentinels() const {
    synchronize(test_device(), nullptr);
    for (const Block& b : blocks_) {
      for (const std::byte* p = b.memory; p < b.begin; ++p)
        ASSERT_EQ(*p, std::byte{kGuardByte}) << "before";
      for (const std::byte* p = b.begin + b.size; p < b.memory + b.size + 3 * kGuard; ++p)
        ASSERT_EQ(*p, std::byte{kGuardByte}) << "after";
    }
    const size_t used_high = arena.peak() - std::min(arena.peak(), arena.low());
    const size_t end = arena.capacity() - std::min(arena.capacity(), used_high);
    for (size_t i = arena.low(); i < std::min(end, arena.low() + 4096); ++i)
      ASSERT_EQ(base_[i], std::byte{0xFF}) << "a result was written past its end";
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr int kGuardByte = 0xA5;
  struct Block {
    std::unique_ptr<std::byte[]> heap;
    DeviceMemory shared;
    std::byte* memory = nullptr;
    std::byte* begin = nullptr;
    size_t size = 0;
  };
  std::vector<Block> blocks_;
  std::byte* base_ = nullptr;
};

// The number of threads for the length of a scope.
class ThreadCount {
 public:
  explicit ThreadCount(int n) : before_(threads()) { set_threads(n); }
  ~ThreadCount() { set_threads(before_); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
};

inline Values random_values(int64_t n, uint64_t seed, double scale = 1, double mean = 0) {
  const Philox rng{seed, 0xc07a};
  Values v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i) v[i] = mean + scale * rng.normal(i);
  return v;
}

// Of memory that the host reaches, or contiguous on a GPU.
inline Values to_double(const Tensor& of) {
  synchronize(test_device(), nullptr);
  std::vector<std::byte> buffer;
  const Tensor t = of && of.contiguous() ? on_host(of, buffer) : of;
  if (!t) return {};
  const Tensor flat = t.contiguous() ? t.reshape({t.numel()}) : t;
  Values v(static_cast<size_t>(t.numel()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = get(flat, static_cast<int64_t>(i));
  return v;
}

// Changes the values of a contiguous tensor on the test's device.
inline void set_values(const Tensor& t, const Values& values) {
  std::vector<float> v(values.begin(), values.end());
  store(Tensor(v.data(), DType::f32, t.shape), t.detach());
}

// `host` on the test's device, for as long as the program runs.
inline Tensor on_test_device(const Tensor& host) {
  static std::vector<DeviceMemory> kept;
  if (test_device().type == Device::cpu) return host;
  const DeviceMemory& memory = kept.emplace_back(test_device(), host.bytes());
  const Tensor t(memory.data(), host.dtype, host.shape, test_device());
  upload(host.data, t);
  return t;
}

inline std::vector<float> to_float(const Tensor& t) {
  const Values v = to_double(t);
  return std::vector<float>(v.begin(), v.end());
}

template <class T>
Values to_double(const std::vector<T>& v) {
  return Values(v.begin(), v.end());
}

inline ComplexValues to_complex(const Values& v) { return ComplexValues(v.begin(), v.end()); }

inline double max_abs(const Values& v) {
  double m = 0;
  for (double x : v) m = std::max(m, std::abs(x));
  return m;
}

// The largest |a - b|; infinity where the sizes differ or a value is NaN.
inline double max_abs_error(const Values& a, const Values& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double m = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double e = a[i] == b[i] ? 0 : std::abs(a[i] - b[i]);
    if (std::isnan(e)) return std::numeric_limits<double>::infinity();
    m = std::max(m, e);
  }
  return m;
}

// Half a unit in the last place of a value of size one: the error of rounding to this dtype.
inline double rounding(DType t) {
  return t == DType::bf16 ? 0x1p-8 : t == DType::f16 ? 0x1p-11 : 0x1p-24;
}

// The largest errors of one tensor over the trials of a case.
struct Errors {
  double got = 0, plain = 0, largest = 0;
  void add(const Values& got_values, const Values& exact, const Values& plain_values) {
    got = std::max(got, max_abs_error(got_values, exact));
    plain = std::max(plain, max_abs_error(plain_values, exact));
    largest = std::max(largest, max_abs(exact));
  }
};

// The house bound: the largest error is at most twice that of `plain`, a naive run of the same formula
// in float32, plus one rounding of the largest value to the dtype of the result (a lucky plain run, or
// one value, can be exact; a bfloat16 result is rounded once more than `plain`).
inline void expect_within_twice_plain(const Values& got, const Values& exact, const Values& plain,
                                      DType dtype, const std::string& what) {
  const double bound = 2 * max_abs_error(plain, exact) + 2 * rounding(dtype) * max_abs(exact);
  EXPECT_LE(max_abs_error(got, exact), bound)
      << what << ": error of the plain float32 run " << max_abs_error(plain, exact)
      << ", largest value " << max_abs(exact);
}

inline void expect_relative(const Values& got, const Values& exact, double tolerance,
                            const std::string& what) {
  EXPECT_LE(max_abs_error(got, exact), tolerance * max_abs(exact))
      << what << ", largest value " << max_abs(exact);
}

inline void expect_same_bits(const Tensor& a, const Tensor& b, const std::string& what) {
  synchronize(test_device(), nullptr);
  ASSERT_TRUE(a.contiguous() && b.contiguous() && a.dtype == b.dtype && a.shape == b.shape) << what;
  EXPECT_TRUE(a.bytes() == 0 || std::memcmp(a.data, b.data, a.bytes()) == 0)
      << what << ": bits differ";
}

inline void expect_same_bits(const Values& a, const Values& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  EXPECT_TRUE(a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0)
      << what << ": bits differ";
}

// d f / d x_i by the complex step (Squire and Trapp 1998): Im f(x + ih e_i) / h, exact to rounding.
// f must be analytic code on complex numbers: no abs, conj or comparison other than of real parts.
inline Values complex_step_gradient(const std::function<Complex(const ComplexValues&)>& f,
                                    const Values& x) {
  constexpr double h = 1e-100;
  ComplexValues z = to_complex(x);
  Values gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    z[i] = {x[i], h};
    gradient[i] = f(z).imag() / h;
    z[i] = x[i];
  }
  return gradient;
}

template <class T>
T dot(const std::vector<T>& values, const Values& weights) {
  T sum = 0;
  for (size_t i = 0; i < values.size(); ++i) sum += values[i] * weights[i];
  return sum;
}

inline double real_part(double x) { return x; }
inline double real_part(float x) { return static_cast<double>(x); }
inline double real_part(const Complex& x) { return x.real(); }

}  // namespace krait::testing
