#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/positions/cuda.h"
#include "krait/ops/positions/positions.h"
#include "krait/tensor/device.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

constexpr int64_t kColumns = 128;  // of D, in one piece

void require_fit(int64_t tokens, int64_t T) {
  require(tokens <= T,
          "[positions] a sequence of {} tokens is longer than the {} positions of this model",
          tokens, T);
}

// The row of w of every token; counts go from state_in to state_out.
void place(const Packing* packing, int64_t B, int64_t L, int64_t T, const Tensor& state_in,
           const Tensor& state_out, int32_t* position) {
  const int64_t n = packing ? packing->n : B;
  for (int64_t s = 0; s < n; ++s) {
    const int64_t begin = packing ? packing->begin.as<int64_t>()[s] : s * L,
                  end = packing ? packing->begin.as<int64_t>()[s + 1] : begin + L,
                  in = packing ? packing->state_in.as<int32_t>()[s] : s,
                  out = packing ? packing->state_out.as<int32_t>()[s] : s;
    const int64_t count = state_in && in >= 0 ? static_cast<int64_t>(state_in.as<float>()[in]) : 0;
    require_fit(count + end - begin, T);
    for (int64_t i = begin; i < end; ++i) position[i] = static_cast<int32_t>(count + i - begin);
    if (state_out && out >= 0) state_out.as<float>()[out] = static_cast<float>(count + end - begin);
  }
}

template <class W>
void add(const Tensor& x, const Tensor& w, const int32_t* position, const Tensor& y) {
  const int64_t D = w.size(1);
  parallel_ranges(x.shape.rows(), 16, [&](int64_t i, int64_t end) {
    for (; i < end; ++i)
      for (int64_t d = 0; d < D; ++d)
        y.as<float>()[i * D + d] =
            x.as<float>()[i * D + d] + static_cast<float>(w.as<W>()[position[i] * D + d]);
  });
}

void scatter(const Tensor& dy, const int32_t* position, const Tensor& dw) {
  const int64_t D = dw.size(1), n = dy.shape.rows();
  parallel_ranges(D, kColumns, [&](int64_t d, int64_t end) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = d; k < end; ++k)
        dw.as<float>()[position[i] * D + k] += dy.as<float>()[i * D + k];
  });
}

}  // namespace

Tensor add_positions(Context& c, const Tensor& x, const Tensor& w, const Packing* packing,
                     const Tensor& state_in, const Tensor& state_out) {
  require(x.rank() == 3 && x.contiguous() && x.dtype == DType::f32 && w.rank() == 2 &&
              w.contiguous() && w.size(1) == x.size(2),
          "[positions] expected contiguous float32 x (B, L, D) and w (T, D), got {} {} and {}",
          name_of(x.dtype), x.shape, w.shape);
  Tensor y = c.alloc(x.shape, DType::f32);
  const Tensor position = c.alloc({x.shape.rows()}, DType::i32);
  c.cost("positions", 3.0 * static_cast<double>(x.bytes()), static_cast<double>(x.numel()));
  const bool gpu = c.device.type == Device::cuda;
  cuda::Positions q{packing ? packing->n : x.size(0), x.shape.rows(), x.size(1), x.size(2),
                    w.size(0)};
  if (!c.planning() && gpu) {
    require_fit(packing ? packing->longest : x.size(1), w.size(0));
    if (packing) q.begin = packing->begin.as<int64_t>();
    if (packing && state_in) q.in = packing->state_in.as<int32_t>();
    if (packing && state_out) q.out = packing->state_out.as<int32_t>();
    q.state_in = state_in ? state_in.as<float>() : nullptr;
    q.state_out = state_out ? state_out.as<float>() : nullptr;
    q.position = position.as<int32_t>();
    KRAIT_WITH_CUDA(cuda::positions_forward(q, x.as<float>(), w.data, w.dtype == DType::bf16,
                                            y.as<float>(), c.stream));
  } else if (!c.planning()) {
    place(packing, x.size(0), x.size(1), w.size(0), state_in, state_out, position.as<int32_t>());
    (w.dtype == DType::bf16 ? add<bf16> : add<float>)(x, w, position.as<int32_t>(), y);
  }
  if (c.tape && needs_grad({x, w})) {
    c.tape->watch_sum(y, x);
    c.tape->record([=](Context& b) {
      if (const Tensor dy = b.tape->grad(y)) {
        if (const GradTarget dw = b.tape->grad_into(b, w); dw.grad) {
          b.cost("positions.backward", static_cast<double>(dy.bytes() + dw.grad.bytes()),
                 static_cast<double>(dy.numel()));
          if (!dw.add) fill(b, dw.grad, 0.0f);
          if (!b.planning() && gpu)
            KRAIT_WITH_CUDA(
                cuda::positions_backward(q, dy.as<float>(), dw.grad.as<float>(), b.stream));
          if (!b.planning() && !gpu) scatter(dy, position.as<int32_t>(), dw.grad);
        }
      }
      b.tape->uncover(y);
    });
  }
  return y;
}

}  // namespace krait::ops
