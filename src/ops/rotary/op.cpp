#include <algorithm>
#include <cmath>
#include <numbers>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/rotary/cuda.h"
#include "krait/ops/rotary/kernels.h"
#include "krait/ops/rotary/rotary.h"

namespace krait::ops {
namespace {

// A position is kRun · whole + rest. The angles of both are exact in float64, and turning by their sum is a
// product of complex numbers there: a sine for every kRun tokens, and the same bits wherever a call begins.
constexpr int64_t kRun = 64;

struct Call {
  Tensor x, start;
  Rotation rotation;
  bool packed = false;
  Packing packing;

  int64_t tokens() const { return x.size(0) * x.size(1); }
  int64_t sequences() const { return packed ? packing.n : x.size(0); }
  void sequence(int64_t s, int64_t& begin, int64_t& end, int64_t& position) const {
    const int64_t L = x.size(1);
    begin = packed ? packing.begin.as<int64_t>()[s] : s * L;
    end = packed ? packing.begin.as<int64_t>()[s + 1] : begin + L;
    const int64_t row = packed ? packing.state_in.as<int32_t>()[s] : s;
    position = start && row >= 0 ? static_cast<int64_t>(start.as<float>()[row]) : 0;
  }
};

bool even_tokens(const Tensor& t) {
  return t.size(0) <= 1 || t.stride[0] == t.size(1) * t.stride[1];
}

void check(const Context& c, const Call& q) {
  const Tensor& x = q.x;
  require(x.rank() == 4 && (x.dtype == DType::f32 || x.dtype == DType::bf16) && x.stride[3] == 1 &&
              even_tokens(x),
          "[rotary] x: expected float32 or bfloat16 (B, L, H, P) with tokens at one distance, got "
          "{} {}",
          name_of(x.dtype), x.shape);
  require(q.rotation.R >= 0 && q.rotation.R % 2 == 0 && q.rotation.R <= x.size(3),
          "[rotary] R: expected an even number of at most P={} elements, got {}", x.size(3),
          q.rotation.R);
  const RotaryScaling& s = q.rotation.scaling;
  require(s.factor > 0 && (s.high == 0 || (s.low > 0 && s.high > s.low && s.original > 0)),
          "[rotary] scaling: expected a factor above 0, and low below high, got {}, {} and {}",
          s.factor, s.low, s.high);
  require(c.device.type == Device::cpu || q.rotation.R <= 2 * cuda::kRotaryMaxPairs,
          "[rotary] R: expected at most {} elements on a GPU, got {}", 2 * cuda::kRotaryMaxPairs,
          q.rotation.R);
  require(
      !q.packed || (q.packing.begin.shape == Shape{q.packing.n + 1} &&
                    q.packing.state_in.shape == Shape{q.packing.n}),
      "[rotary] packing of {} sequences: expected begin ({},) and state_in ({},), got {} and {}",
      q.packing.n, q.packing.n + 1, q.packing.n, q.packing.begin.shape, q.packing.state_in.shape);
  require(!q.start || (q.start.dtype == DType::f32 && q.start.contiguous() && q.start.rank() == 2 &&
                       q.start.size(1) == 1 && (q.packed || q.start.size(0) == x.size(0))),
          "[rotary] start: expected contiguous float32 (S, 1), one row a sequence, got {} {}",
          name_of(q.start.dtype), q.start.shape);
}

// angles (R/2): by how much each pair turns from one position to the next
void fill_angles(const Rotation& r, double* angles) {
  const RotaryScaling& s = r.scaling;
  for (int64_t i = 0; i < r.R / 2; ++i) {
    const double angle = std::pow(r.base, -2.0 * static_cast<double>(i) / static_cast<double>(r.R));
    const double turns = s.original * angle / (2 * std::numbers::pi);
    const double kept =  // of the angle as it is
        s.high > 0 ? std::clamp((turns - s.low) / (s.high - s.low), 0.0, 1.0) : 0.0;
    angles[i] = angle * (kept + (1 - kept) / s.factor);
  }
}

// rests (kRun, R/2, 2): cosine and sine of every rest
void fill_rests(const Rotation& r, const double* angles, double* rests) {
  const int64_t half = r.R / 2;
  for (int64_t i = 0; i < kRun * half; ++i) {
    const double angle = static_cast<double>(i / half) * angles[i % half];
    rests[2 * i] = std::cos(angle);
    rests[2 * i + 1] = std::sin(angle);
  }
}

// Tokens [from, to) of one sequence whose token `from` stands at `position`; `sign` -1 turns back.
void rotate_tokens(const Call& q, const double* angles, const double* rests, double* whole,
                   float* turn, double sign, RotaryProblem p, const Tensor& from, const Tensor& to,
                   int64_t begin, int64_t end, int64_t position) {
  const int64_t half = q.rotation.R / 2;
  const auto bytes = static_cast<int64_t>(size_of(from.dtype));
  const RotaryKernels& kernels = KRAIT_PICK_ISA(rotary_kernels);
  int64_t current = -1;
  for (int64_t t = begin; t < end; ++t, ++position) {
    if (position / kRun != current) {
      current = position / kRun;
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(current * kRun) * angles[i];
        whole[2 * i] = std::cos(angle);
        whole[2 * i + 1] = std::sin(angle);
      }
    }
    const double* rest = rests + position % kRun * half * 2;
    for (int64_t i = 0; i < half; ++i) {
      const double c = whole[2 * i], s = whole[2 * i + 1], rc = rest[2 * i], rs = rest[2 * i + 1];
      turn[i] = static_cast<float>(c * rc - s * rs);
      turn[half + i] = static_cast<float>(sign * (c * rs + s * rc));
    }
    kernels.rotate(p, turn, static_cast<const std::byte*>(from.data) + t * from.stride[1] * bytes,
                   static_cast<std::byte*>(to.data) + t * to.stride[1] * bytes);
  }
}

void run_on_gpu([[maybe_unused]] Context& c, const Call& q, const Tensor& from, const Tensor& to,
                bool back, bool add) {
  cuda::RotaryCall r;
  r.bf16 = from.dtype == DType::bf16;
  r.interleaved = q.rotation.interleaved;
  r.add = add;
  r.tokens = q.tokens();
  r.L = from.size(1);
  r.H = from.size(2);
  r.P = from.size(3);
  r.R = q.rotation.R;
  r.sequences = q.sequences();
  if (q.packed) {
    r.begin = q.packing.begin.as<int64_t>();
    r.row_in = q.packing.state_in.as<int32_t>();
  }
  r.start = q.start ? q.start.as<float>() : nullptr;
  r.from = from.data;
  r.to = to.data;
  r.from_row = from.stride[1];
  r.from_head = from.stride[2];
  r.to_row = to.stride[1];
  r.to_head = to.stride[2];
  r.sign = back ? -1 : 1;
  fill_angles(q.rotation, r.angle);
  KRAIT_WITH_CUDA(cuda::rotary(r, c.stream));
}

void run(Context& c, const Call& q, const Tensor& from, const Tensor& to, bool back, bool add) {
  if (c.device.type == Device::cuda) {
    if (!c.planning()) run_on_gpu(c, q, from, to, back, add);
    return;
  }
  const int64_t half = q.rotation.R / 2, T = q.tokens(), pieces = (T + kRun - 1) / kRun;
  Scratch scratch(c);
  const Tensor angles = c.scratch({half}, DType::f64);
  const Tensor rests = c.scratch({kRun, half, 2}, DType::f64);
  const Tensor wholes = c.scratch({pieces, half, 2}, DType::f64);
  const Tensor turns = c.scratch({pieces, half, 2}, DType::f32);
  if (c.planning()) return;
  fill_angles(q.rotation, angles.as<double>());
  fill_rests(q.rotation, angles.as<double>(), rests.as<double>());
  RotaryProblem p;
  p.bf16 = from.dtype == DType::bf16;
  p.interleaved = q.rotation.interleaved;
  p.add = add;
  p.H = from.size(2);
  p.P = from.size(3);
  p.R = q.rotation.R;
  p.from_head = from.stride[2];
  p.to_head = to.stride[2];
  parallel_for(pieces, [&](int64_t piece) {
    const int64_t first = piece * kRun, last = std::min(T, first + kRun);
    for (int64_t s = 0; s < q.sequences(); ++s) {
      int64_t begin, end, position;
      q.sequence(s, begin, end, position);
      const int64_t a = std::max(begin, first), b = std::min(end, last);
      if (a < b)
        rotate_tokens(q, angles.as<double>(), rests.as<double>(),
                      wholes.as<double>() + piece * 2 * half, turns.as<float>() + piece * 2 * half,
                      back ? -1 : 1, p, from, to, a, b, position + a - begin);
    }
  });
}

}  // namespace

Tensor rotary(Context& c, const Tensor& x, const Rotation& rotation, const Packing* packing,
              const Tensor& start) {
  Call q{x, start.detach(), rotation, packing != nullptr, packing ? *packing : Packing()};
  check(c, q);
  Tensor y = c.alloc(x.shape, x.dtype);
  const double bytes = 2 * static_cast<double>(x.bytes());
  const double flops = 3 * static_cast<double>(q.tokens() * x.size(2) * rotation.R);
  c.cost("rotary", bytes, flops);
  run(c, q, x, y, false, false);
  if (c.tape && needs_grad({x})) {
    c.tape->watch(y);
    c.tape->record([=](Context& b) {
      const Tensor dy = b.tape->grad(y);
      if (!dy) return;
      const GradTarget dx = b.tape->grad_into(b, x);
      b.cost("rotary.backward", bytes, flops);
      run(b, q, dy, dx.grad, true, dx.add);
    });
  }
  return y;
}

}  // namespace krait::ops
