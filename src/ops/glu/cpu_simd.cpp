#include "krait/ops/glu/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {
namespace {

template <class T>
void forward_typed(const T* x, T* y, int64_t rows, int64_t H) {
  for (int64_t r = 0; r < rows; ++r, x += 2 * H, y += H)
    for_lanes(0, H, [&](auto d, int64_t i) {
      store(d, hn::Mul(load(d, x + i), Sigmoid(d, load(d, x + H + i))), y + i);
    });
}

// da = dy σ(b), db = dy a σ(b) (1 - σ(b))
template <class T>
void backward_typed(const T* x, const T* dy, T* dx, bool add, int64_t rows, int64_t H) {
  for (int64_t r = 0; r < rows; ++r, x += 2 * H, dx += 2 * H, dy += H)
    for_lanes(0, H, [&](auto d, int64_t i) {
      const auto s = Sigmoid(d, load(d, x + H + i));
      auto da = hn::Mul(load(d, dy + i), s);
      auto db = hn::Mul(hn::Mul(da, load(d, x + i)), hn::Sub(hn::Set(d, 1.0f), s));
      if (add) {
        da = hn::Add(da, load(d, dx + i));
        db = hn::Add(db, load(d, dx + H + i));
      }
      store(d, da, dx + i);
      store(d, db, dx + H + i);
    });
}

void forward(const void* x, void* y, bool is_bf16, int64_t rows, int64_t H) {
  is_bf16 ? forward_typed(static_cast<const bf16*>(x), static_cast<bf16*>(y), rows, H)
          : forward_typed(static_cast<const float*>(x), static_cast<float*>(y), rows, H);
}

void backward(const void* x, const void* dy, void* dx, bool is_bf16, bool add, int64_t rows,
              int64_t H) {
  is_bf16 ? backward_typed(static_cast<const bf16*>(x), static_cast<const bf16*>(dy),
                           static_cast<bf16*>(dx), add, rows, H)
          : backward_typed(static_cast<const float*>(x), static_cast<const float*>(dy),
                           static_cast<float*>(dx), add, rows, H);
}

}  // namespace

extern const GluKernels glu_kernels = {forward, backward};

}  // namespace krait::KRAIT_ISA
