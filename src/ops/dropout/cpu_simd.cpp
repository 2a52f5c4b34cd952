// The mask of a block of elements is drawn first, in loops that compilers turn into vector code (one lane
// a counter), then applied.
#include "krait/ops/dropout/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {
namespace {

constexpr int kCounters = 64;          // of one block
constexpr int kBlock = 4 * kCounters;  // elements: four words a counter

// mask[i] = scale where element `first` + i is kept, else 0. The words are those of krait::Philox.
void draw(const DropoutProblem& p, int64_t first, float* mask) {
  uint32_t c0[kCounters], c1[kCounters], c2[kCounters], c3[kCounters];
  const uint64_t counter = static_cast<uint64_t>(first) >> 2;
  for (int i = 0; i < kCounters; ++i) {
    const uint64_t at = counter + static_cast<uint64_t>(i);
    c0[i] = static_cast<uint32_t>(at);
    c1[i] = static_cast<uint32_t>(at >> 32);
    c2[i] = static_cast<uint32_t>(p.stream);
    c3[i] = static_cast<uint32_t>(p.stream >> 32);
  }
  auto k0 = static_cast<uint32_t>(p.seed), k1 = static_cast<uint32_t>(p.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kCounters; ++i) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c0[i], p1 = uint64_t{0xCD9E8D57u} * c2[i];
      c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
      c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
      c1[i] = static_cast<uint32_t>(p1);
      c3[i] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < kCounters; ++i) {
    mask[4 * i + 0] = (c0[i] >> 8) >= p.threshold ? p.scale : 0.0f;
    mask[4 * i + 1] = (c1[i] >> 8) >= p.threshold ? p.scale : 0.0f;
    mask[4 * i + 2] = (c2[i] >> 8) >= p.threshold ? p.scale : 0.0f;
    mask[4 * i + 3] = (c3[i] >> 8) >= p.threshold ? p.scale : 0.0f;
  }
}

template <class F>
HWY_INLINE void for_blocks(const DropoutProblem& p, int64_t begin, int64_t end, const F& f) {
  float mask[kBlock];
  for (int64_t at = begin; at < end; at += kBlock) {
    if (p.threshold > 0) {
      draw(p, at, mask);
    } else {
      for (float& m : mask) m = 1.0f;
    }
    const int64_t n = end - at < kBlock ? end - at : kBlock;
    for_lanes(0, n, [&](auto d, int64_t i) { f(d, at + i, hn::LoadU(d, mask + i)); });
  }
}

template <class X>
void forward_x(const DropoutProblem& p, const float* stream, float* y, int64_t begin, int64_t end) {
  const X* x = static_cast<const X*>(p.x);
  for_blocks(p, begin, end, [&](auto d, int64_t i, auto mask) {
    hn::StoreU(hn::MulAdd(load(d, x + i), mask, hn::LoadU(d, stream + i)), d, y + i);
  });
}

template <class X>
void backward_x(const DropoutProblem& p, const float* dy, X* dx, bool add, int64_t begin,
                int64_t end) {
  for_blocks(p, begin, end, [&](auto d, int64_t i, auto mask) {
    const auto v = hn::Mul(hn::LoadU(d, dy + i), mask);
    store(d, add ? hn::Add(v, load(d, dx + i)) : v, dx + i);
  });
}

void forward(const DropoutProblem& p, const float* stream, float* y, int64_t begin, int64_t end) {
  p.bf16 ? forward_x<bf16>(p, stream, y, begin, end) : forward_x<float>(p, stream, y, begin, end);
}

void backward(const DropoutProblem& p, const float* dy, void* dx, bool add, int64_t begin,
              int64_t end) {
  p.bf16 ? backward_x(p, dy, static_cast<bf16*>(dx), add, begin, end)
         : backward_x(p, dy, static_cast<float*>(dx), add, begin, end);
}

}  // namespace

extern const DropoutKernels dropout_kernels = {forward, backward};

}  // namespace krait::KRAIT_ISA
