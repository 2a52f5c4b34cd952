// Tensors of more than 2^32 elements on a GPU, forward and backward. Five rows of a little over 2^30 elements are
// read; then the first two change places with rows behind 2^31 and 2^32, and must give what those gave, bit for bit.
// KRAIT_TEST_LARGE=1 runs them: they take up to 120 GB of the card, where nothing else may run then.
#include "krait/autograd/plan.h"
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/cross_entropy/cross_entropy.h"
#include "krait/ops/gate/gate.h"
#include "krait/ops/gated_norm/gated_norm.h"
#include "krait/ops/norm/norm.h"
#include "krait/ops/rotary/rotary.h"
#include "krait/ops/selective_scan/selective_scan.h"
#include "krait/ops/ssd/ssd.h"
#include "krait/testing/op_test.h"

namespace krait::ops {
namespace {

using namespace krait::testing;
using Tensors = std::vector<Tensor>;

constexpr int64_t kRows = 5, kL = 262145, kE = 4096;
static_assert((kRows - 1) * kL * kE > int64_t{1} << 32);

struct FarCase {
  const char* name;
  std::vector<int64_t> widths;    // inputs (kRows, kL, width), bfloat16
  std::vector<Shape> parameters;  // float32, from 0.1 to 1
  // y (kRows, kL, ...); cross-entropy: its losses
  std::function<Tensor(Context&, const Tensors& rows, const Tensors& parameters)> run;
  bool losses = false;  // gradients come with the call, y has none
};

ScanInputs scan_inputs(const Tensors& x, const Tensors& p) {
  ScanInputs in;
  in.u = x[0];
  in.dt = x[1];
  in.z = x[2];
  in.B = x[3];
  in.C = x[4];
  in.A = p[0];
  in.a_is_log = true;
  return in;
}

// The five rows as sequences of one.
Packing packing() {
  static std::vector<int64_t> begin = {0, kL, 2 * kL, 3 * kL, 4 * kL, 5 * kL};
  static std::vector<int32_t> none(kRows, -1);
  Packing p;
  p.n = kRows;
  p.longest = kL;
  p.begin = on_test_device(Tensor(begin.data(), DType::i64, {kRows + 1}));
  p.state_in = p.state_out = on_test_device(Tensor(none.data(), DType::i32, {kRows}));
  return p;
}

Tensors in_one_row(const Tensors& rows) {
  Tensors one;
  for (const Tensor& t : rows) one.push_back(t.reshape({1, kRows * kL, t.size(-1)}));
  return one;
}

std::vector<FarCase> cases() {
  constexpr int64_t N = 16, H = kE / 64, V = 300;
  return {
      {"Scan",
       {kE, kE, kE, N, N},
       {{kE, N}},
       [](Context& c, const Tensors& x, const Tensors& p) {
         return selective_scan(c, scan_inputs(x, p)).y;
       }},
      {"PackedScan",
       {kE, kE, kE, N, N},
       {{kE, N}},
       [](Context& c, const Tensors& x, const Tensors& p) {
         const Packing packed = packing();
         return selective_scan(c, scan_inputs(in_one_row(x), p), &packed).y;
       }},
      {"Ssd",
       {kE, H, 128, 128},
       {{H}},
       [](Context& c, const Tensors& x, const Tensors& p) {
         SsdInputs in;
         in.x = x[0];
         in.dt = x[1];
         in.B = x[2];
         in.C = x[3];
         in.A = p[0];
         in.a_is_log = true;
         return ssd(c, in).y;
       }},
      {"Convolution",
       {kE},
       {{kE, 4}, {kE}},
       [](Context& c, const Tensors& x, const Tensors& p) {
         return conv1d_causal(c, x[0], p[0], p[1], true).y;
       }},
      {"PackedConvolution",
       {kE},
       {{kE, 4}, {kE}},
       [](Context& c, const Tensors& x, const Tensors& p) {
         const Packing packed = packing();
         return conv1d_causal(c, in_one_row(x)[0], p[0], p[1], true, &packed).y;
       }},
      {"Norm",
       {kE},
       {{kE}},
       [](Context& c, const Tensors& x, const Tensors& p) {
         return norm(c, NormKind::rms, x[0], p[0], {}, 1e-5f, DType::bf16).y;
       }},
      {"GatedNorm",
       {kE, kE},
       {{kE}},
       [](Context& c, const Tensors& x, const Tensors& p) {
         return gated_norm(c, {x[0], x[1], p[0], {}});
       }},
      {"Gate",
       {kE, kE},
       {},
       [](Context& c, const Tensors& x, const Tensors&) {
         return gate(c, Gate::silu, x[0], x[1]);
       }},
      {"Rotary",
       {kE},
       {},
       [](Context& c, const Tensors& x, const Tensors&) {
         return rotary(c, x[0].reshape({kRows, kL, H, 64}), {64});
       }},
      {"CrossEntropy",
       {kE},
       {{V, kE}},
       [](Context& c, const Tensors& x, const Tensors& p) {
         // Of every row the same: they do not change places.
         static std::vector<int32_t> ids = [] {
           std::vector<int32_t> all(kRows * kL);
           for (int64_t i = 0; i < kRows * kL; ++i)
             all[static_cast<size_t>(i)] = static_cast<int32_t>(i % kL * 7 % V);
           return all;
         }();
         static const Tensor targets = on_test_device(Tensor(ids.data(), DType::i32, {kRows, kL}));
         return linear_cross_entropy(c, x[0], p[0], targets, 1e-3f).nll;
       },
       /*losses=*/true},
  };
}

// From `low` to 1, a stretch repeated that has no factor in common with a row.
void fill(const Tensor& t, uint64_t seed, double low) {
  constexpr int64_t kDrawn = 1048573;
  const int64_t n = std::min(t.numel(), kDrawn);
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(low + (1 - low) * Philox{seed, 1}.uniform(i));
  const Tensor flat = t.detach().reshape({t.numel()});
  store(Tensor(values.data(), DType::f32, {n}), flat.slice(0, 0, n));
  for (int64_t at = n; at < t.numel(); at *= 2) {
    const int64_t more = std::min(at, t.numel() - at);
    copy_bytes(flat.slice(0, 0, more), flat.slice(0, at, at + more));
  }
}

void exchange(const Tensor& a, const Tensor& b, const Tensor& between) {
  const Tensor kept = between.reshape({between.numel()}).slice(0, 0, a.numel()).reshape(a.shape);
  copy_bytes(a, kept);
  copy_bytes(b, a);
  copy_bytes(kept, b);
}

// Of a row its beginning, middle and end, as they lie in memory. (Not the end where all rows are one product by
// blocks of them: the last block is a smaller product, whose sums may have another order.)
std::vector<std::byte> sample(const Tensor& t, int64_t row, bool with_end) {
  const int64_t n = t.numel() / kRows, piece = std::min(n, int64_t{1} << 20);
  const Tensor flat = t.detach().reshape({t.numel()});
  std::vector<std::byte> all, part;
  for (const int64_t at : {int64_t{0}, (n - piece) / 2, n - piece}) {
    if (at > 0 && at == n - piece && !with_end) continue;
    const Tensor here = on_host(flat.slice(0, row * n + at, row * n + at + piece), part);
    const auto* const bytes = static_cast<const std::byte*>(here.data);
    all.insert(all.end(), bytes, bytes + here.bytes());
  }
  return all;
}

class Far : public ::testing::TestWithParam<FarCase> {
 protected:
  // What is judged of a run, forward and backward: y, and the gradient of each input.
  static Tensors results(Context& c, const FarCase& k, Tensors rows, Tensors parameters,
                         const Tensor& dy) {
    for (Tensors* all : {&rows, &parameters})
      for (Tensor& t : *all) c.tape->watch(t);
    for (const Tensor& t : rows) c.tape->reserve_grad(c, t);
    for (const Tensor& t : parameters) c.tape->reserve_grad(c, t);
    const Tensor y = k.run(c, rows, parameters);
    if (!k.losses) {
      const Tensor g = c.tape->grad_into(c, y).grad;
      if (!c.planning()) copy_bytes(dy.reshape(g.shape), g, c.stream);
      c.tape->backward(c);
    }
    Tensors all = {y};
    for (const Tensor& t : rows) all.push_back(c.tape->grad(t));
    synchronize(c.device, c.stream);
    return all;
  }
};

TEST_P(Far, RowsBeyond31And32BitsAreLikeAnyOther) {
  const Device device = test_device();
  if (device.type == Device::cpu) GTEST_SKIP() << "five rows of 2 GB: minutes on a CPU";
  if (!std::getenv("KRAIT_TEST_LARGE")) GTEST_SKIP() << "takes a whole GPU: set KRAIT_TEST_LARGE=1";
  const FarCase& k = GetParam();

  size_t bytes = size_t{3} << 30;  // a row to exchange through, and for the libraries
  const auto shape = [](int64_t width) { return Shape{kRows, kL, width}; };
  for (const int64_t width : k.widths) bytes += static_cast<size_t>(shape(width).numel()) * 2;
  if (!k.losses) bytes += static_cast<size_t>(shape(kE).numel()) * 2;
  Tensors rows, parameters;
  Tensor dy;
  const auto take_all = [&](Arena& memory) {
    const auto take = [&](const Shape& s, DType type) {
      return Tensor(memory.take_low(static_cast<size_t>(s.numel()) * size_of(type)), type, s,
                    device);
    };
    rows.clear();
    parameters.clear();
    for (const int64_t width : k.widths) rows.push_back(take(shape(width), DType::bf16));
    for (const Shape& s : k.parameters) parameters.push_back(take(s, DType::f32));
    if (!k.losses) dy = take(shape(kE), DType::bf16);
    return take({kL, kE}, DType::bf16);
  };
  Arena nowhere = Arena::planning();
  take_all(nowhere);
  Context like{.device = device, .activation = DType::bf16};
  const size_t working =
      plan(like, true, [&](Context& c) { results(c, k, rows, parameters, dy); }).bytes;
  if (const size_t free = free_memory(device); free < bytes + working)
    GTEST_SKIP() << "needs " << (bytes + working) / 1000000000 << " GB of the GPU's memory, "
                 << free / 1000000000 << " are free";

  Arena memory(bytes, device), arena(working, device);
  const Tensor between = take_all(memory);
  for (size_t i = 0; i < rows.size(); ++i) fill(rows[i], i + 1, -1);
  for (size_t i = 0; i < parameters.size(); ++i) fill(parameters[i], i + 100, 0.1);
  if (dy) fill(dy, 200, -1);
  const auto run = [&](int64_t first, int64_t second) {
    Tape tape;
    Context c{.device = device, .arena = &arena, .tape = &tape, .activation = DType::bf16};
    arena.reset();
    std::vector<std::vector<std::byte>> samples;
    for (const Tensor& t : results(c, k, rows, parameters, dy))
      for (const int64_t row : {first, second}) samples.push_back(sample(t, row, !k.losses));
    return samples;
  };
  const auto far = run(4, 2), near = run(0, 1);
  for (const Tensor& t : rows) {
    exchange(t.select(0, 0), t.select(0, 4), between);
    exchange(t.select(0, 1), t.select(0, 2), between);
  }
  if (dy) {
    exchange(dy.select(0, 0), dy.select(0, 4), between);
    exchange(dy.select(0, 1), dy.select(0, 2), between);
  }
  const auto moved = run(0, 1);
  for (size_t i = 0; i < far.size(); ++i) {
    const std::string what =
        (i < 2 ? std::string("y") : "gradient of input " + std::to_string(i / 2)) +
        (i % 2 == 0 ? ", row 4" : ", row 2");
    EXPECT_TRUE(far[i] == moved[i]) << what << ": differs where it lies near";
    EXPECT_FALSE(far[i] == near[i]) << what << ": rows that should differ do not";
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, Far, ::testing::ValuesIn(cases()),
                         [](const auto& p) { return std::string(p.param.name); });

}  // namespace
}  // namespace krait::ops
