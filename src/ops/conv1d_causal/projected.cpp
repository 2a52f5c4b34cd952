#include <utility>

#include "krait/autograd/tape.h"
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/conv1d_causal/cuda_projected.h"
#include "krait/ops/linear/linear.h"
#include "krait/tensor/device.h"
#include "krait/tensor/memory.h"

namespace krait::ops {

namespace {

float* floats(const Tensor& t) { return t ? t.as<float>() : nullptr; }

cuda::ConvProjected problem(const Tensor& x, const Tensor& k, const Tensor& bias, const Tensor& w) {
  cuda::ConvProjected p;
  p.tokens = x.size(0) * x.size(1);
  p.length = x.size(1);
  p.E = x.size(2);
  p.J = w.size(0);
  p.x = x.data;
  p.x_stride = x.row_stride();
  p.k = floats(k);
  p.bias = floats(bias);
  p.w = w.data;
  return p;
}

// Whether backward is one: asked before the ops check what they are given.
bool joins(const Context& c, const Tensor& x, const Tensor& k, const Tensor& bias,
           const Tensor& w) {
  const auto fits = [](const Tensor& t, DType type, const Shape& shape) {
    return t.dtype == type && t.shape == shape && t.contiguous();
  };
  if (!c.tape || !x.var || c.device.type != Device::cuda || c.activation != DType::bf16 ||
      x.dtype != DType::bf16 || x.rank() != 3 || !x.row_strided() || w.rank() != 2 ||
      !fits(w, DType::bf16, {w.size(0), x.size(2)}) || !w.var || w.var->grad_dtype != DType::f32 ||
      !fits(k, DType::f32, {x.size(2), 4}) || (bias && !fits(bias, DType::f32, {x.size(2)})))
    return false;
  bool here = false;
  KRAIT_WITH_CUDA(here = cuda::fits_conv_projected(problem(x, k, bias, w)));
  return here;
}

// The gradient of a result, zeros where nobody used it.
Tensor gradient(Context& b, const Tensor& t) {
  if (const Tensor d = b.tape->grad(t)) return d;
  const Tensor nothing = b.scratch(t.shape, t.dtype);
  if (!b.planning()) fill(b, nothing, 0.0f);
  return nothing;
}

void backward(Context& b, const Tensor& x, const Tensor& k, const Tensor& bias, const Tensor& w,
              const Tensor& y, const Tensor& p) {
  if (!b.tape->grad(y) && !b.tape->grad(p)) return;
  const GradTarget dx = b.tape->grad_into(b, x), dk = b.tape->grad_into(b, k),
                   dbias = b.tape->grad_into(b, bias), dw = b.tape->grad_into(b, w);
  Scratch scratch(b);
  const Tensor dy = gradient(b, y), dp = gradient(b, p);
  cuda::ConvProjected to = problem(x, k, bias, w);
  const Tensor sums = b.scratch(
      {cuda::conv_projected_pieces(to.tokens, to.E), k.size(1) + 1 + to.J, to.E}, DType::f32);
  const double n = static_cast<double>(x.numel());
  b.cost("conv1d_projected.backward", static_cast<double>(3 * y.bytes() + p.bytes()),
         n * static_cast<double>(4 * to.J + 34));
  if (b.planning()) return;
  to.dy = dy.data;
  to.dp = dp.data;
  to.dx = dx.grad.data;
  to.dx_stride = dx.grad.row_stride();
  to.dx_add = dx.add;
  to.sums = floats(sums);
  to.dk = floats(dk.grad);
  to.dk_add = dk.add;
  to.dbias = floats(dbias.grad);
  to.dbias_add = dbias.add;
  to.dw = floats(dw.grad);
  to.dw_add = dw.add;
  KRAIT_WITH_CUDA(cuda::conv_projected_backward(to, b.stream));
}

// While one stands, ops do not record.
class Unrecorded {
 public:
  explicit Unrecorded(Context& c) : c_(c), tape_(std::exchange(c.tape, nullptr)) {}
  ~Unrecorded() { c_.tape = tape_; }
  Unrecorded(const Unrecorded&) = delete;
  Unrecorded& operator=(const Unrecorded&) = delete;

 private:
  Context& c_;
  Tape* tape_;
};

}  // namespace

ConvProjection conv1d_projected(Context& c, const Tensor& x, const Tensor& k, const Tensor& bias,
                                const Tensor& w, const Packing* packing, const Tensor& state_in,
                                const Tensor& state_out, bool reverse) {
  const auto run = [&] {
    const ConvResult conv =
        conv1d_causal(c, x, k, bias, true, packing, state_in, state_out, reverse);
    return ConvProjection{conv.y, linear(c, conv.y, w, {}, c.activation), conv.state};
  };
  if (packing || state_in || state_out || reverse || !joins(c, x, k, bias, w)) return run();
  needs_grad({x, k, bias, w});
  ConvProjection result;
  {
    const Unrecorded unrecorded(c);
    result = run();
  }
  c.tape->watch(result.y);
  c.tape->watch(result.p);
  c.tape->record([=](Context& b) { backward(b, x, k, bias, w, result.y, result.p); });
  return result;
}

}  // namespace krait::ops
