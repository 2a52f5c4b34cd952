#include <algorithm>
#include <bit>
#include <cmath>

#include "krait/base/threads.h"
#include "krait/ops/adamw/adamw.h"
#include "krait/ops/adamw/cuda.h"
#include "krait/ops/adamw/kernels.h"

namespace krait::ops {

namespace {

// Tensors are walked in pieces of this many elements, small tensors in one: work for threads whatever
// the sizes, and a fixed order of sums.
constexpr int64_t kPiece = cuda::kGradPiece;

struct Piece {
  size_t tensor;
  int64_t begin, end;
};

template <class Size>
std::vector<Piece> pieces_of(size_t count, const Size& size) {
  std::vector<Piece> pieces;
  for (size_t t = 0; t < count; ++t)
    for (int64_t begin = 0; begin < size(t); begin += kPiece)
      pieces.push_back({t, begin, std::min(size(t), begin + kPiece)});
  return pieces;
}

void check_scalars(const Tensor& scalars) {
  require(
      scalars.dtype == DType::f32 && scalars.shape == Shape{kStepScalars} && scalars.contiguous(),
      "[adamw] scalars: expected float32 ({},), got {} {}", static_cast<int>(kStepScalars),
      name_of(scalars.dtype), scalars.shape);
}

void check_tensor(const Tensor& t, const Shape& shape, DType dtype, const char* name, size_t i) {
  require(t.shape == shape && t.dtype == dtype && t.contiguous(),
          "[adamw] {} of tensor {}: expected contiguous {} {}, got {} {}", name, i, name_of(dtype),
          shape, name_of(t.dtype), t.shape);
}

uint16_t* low_bits(const Tensor& low) { return low ? &low.as<bf16>()->bits : nullptr; }

void check_halves(const Shape& shape, const Tensor& value, const Tensor& low, size_t i) {
  check_tensor(value, shape, DType::bf16, "value", i);
  check_tensor(low, shape, DType::bf16, "low", i);
}

void adamw_on_gpu(Context& c, const std::vector<AdamwTensors>& tensors, const AdamwOptions& o,
                  const Tensor& scalars) {
  std::vector<cuda::AdamwTensor> list;
  list.reserve(tensors.size());
  for (const AdamwTensors& t : tensors)
    list.push_back({.value = t.value.data,
                    .low = low_bits(t.low),
                    .grad = t.grad.as<float>(),
                    .m = t.m.as<float>(),
                    .v = t.v.as<float>(),
                    .n = t.value.numel(),
                    .decay = t.decay,
                    .rate = t.rate});
  KRAIT_WITH_CUDA(cuda::adamw(list, o.beta1, o.beta2, o.eps, scalars.as<float>(), c.stream));
}

void clip_on_gpu(Context& c, const std::vector<Tensor>& grads, float limit, const Tensor& sums,
                 const Tensor& scalars, const cuda::Floats& losses) {
  std::vector<cuda::Floats> list;
  list.reserve(grads.size());
  for (const Tensor& g : grads) list.push_back({g.as<float>(), g.numel()});
  KRAIT_WITH_CUDA(
      cuda::clip_grad_norm(list, losses, limit, sums.as<double>(), scalars.as<float>(), c.stream));
}

}  // namespace

void adamw(Context& c, const std::vector<AdamwTensors>& tensors, const AdamwOptions& o,
           const Tensor& scalars) {
  check_scalars(scalars);
  double elements = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const AdamwTensors& t = tensors[i];
    if (t.low) {
      check_halves(t.value.shape, t.value, t.low, i);
    } else {
      check_tensor(t.value, t.value.shape, DType::f32, "value", i);
    }
    check_tensor(t.grad, t.value.shape, DType::f32, "grad", i);
    check_tensor(t.m, t.value.shape, DType::f32, "m", i);
    check_tensor(t.v, t.value.shape, DType::f32, "v", i);
    elements += static_cast<double>(t.value.numel());
  }
  c.cost("adamw", elements * 28, elements * 14);
  if (c.planning()) return;
  if (c.device.type == Device::cuda) return adamw_on_gpu(c, tensors, o, scalars);

  const AdamwKernels& k = KRAIT_PICK_ISA(adamw_kernels);
  const float* s = scalars.as<float>();
  if (s[kClip] == 0) return;
  const auto pieces = pieces_of(tensors.size(), [&](size_t t) { return tensors[t].value.numel(); });
  parallel_for(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
    const auto [index, begin, end] = pieces[static_cast<size_t>(i)];
    const AdamwTensors& t = tensors[index];
    const float lr = t.rate * s[kLearningRate];
    const AdamwFactors factors = {.clip = s[kClip],
                                  .beta1 = o.beta1,
                                  .beta2 = o.beta2,
                                  .keep = 1 - lr * t.decay,
                                  .step = lr / s[kBias1],
                                  .inv_bias2 = 1 / s[kBias2],
                                  .eps = o.eps};
    k.update({.value = static_cast<std::byte*>(t.value.data) +
                       begin * static_cast<int64_t>(size_of(t.value.dtype)),
              .low = t.low ? low_bits(t.low) + begin : nullptr,
              .grad = t.grad.as<float>() + begin,
              .m = t.m.as<float>() + begin,
              .v = t.v.as<float>() + begin,
              .n = end - begin},
             factors);
  });
}

void split(Context& c, const Tensor& p, const Tensor& value, const Tensor& low, const Tensor& v) {
  check_tensor(p, p.shape, DType::f32, "p", 0);
  check_halves(p.shape, value, low, 0);
  check_tensor(v, p.shape, DType::f32, "v", 0);
  c.cost("split", static_cast<double>(p.numel()) * 16, 0);
  if (c.planning()) return;
  const float* const from = p.as<float>();
  if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(
        cuda::split(from, value.data, low_bits(low), v.as<float>(), p.numel(), c.stream));
    return;
  }
  bf16* const high = value.as<bf16>();
  uint16_t* const rest = low_bits(low);
  float* const moments = v.as<float>();
  parallel_ranges(p.numel(), kPiece, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const auto bits = std::bit_cast<uint32_t>(from[i]);
      const bool down = (bits & 0x1ffffu) == 0x8000u;  // a tie above an even number
      high[i] = bf16(from[i]);
      rest[i] = static_cast<uint16_t>(bits);
      moments[i] = std::copysign(moments[i], down ? -1.0f : 1.0f);
    }
  });
}

void join(const Tensor& value, const Tensor& low, const Tensor& v, const Tensor& p) {
  check_tensor(p, p.shape, DType::f32, "p", 0);
  check_halves(p.shape, value, low, 0);
  check_tensor(v, p.shape, DType::f32, "v", 0);
  const bf16* const highs = value.as<bf16>();
  const uint16_t* const rests = low_bits(low);
  const float* const moments = v.as<float>();
  float* const to = p.as<float>();
  parallel_ranges(p.numel(), kPiece, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const auto rest = static_cast<uint32_t>(static_cast<int16_t>(rests[i]));
      const uint32_t down = std::signbit(moments[i]) ? 0x10000u : 0u;
      to[i] = std::bit_cast<float>((uint32_t{highs[i].bits} << 16) + rest + down);
    }
  });
}

void clip_grad_norm(Context& c, const std::vector<Tensor>& grads, float limit,
                    const Tensor& scalars, const Tensor& losses) {
  check_scalars(scalars);
  require(!losses || (losses.dtype == DType::f32 && losses.contiguous()),
          "[adamw] losses: expected contiguous float32, got {} {}", name_of(losses.dtype),
          losses.shape);
  double elements = 0;
  for (size_t i = 0; i < grads.size(); ++i) {
    check_tensor(grads[i], grads[i].shape, DType::f32, "grad", i);
    elements += static_cast<double>(grads[i].numel());
  }
  c.cost("clip_grad_norm", elements * 4, elements * 2);
  const auto pieces = pieces_of(grads.size(), [&](size_t t) { return grads[t].numel(); });
  Scratch scratch(c);
  const Tensor sums = c.scratch({static_cast<int64_t>(pieces.size())}, DType::f64);
  if (c.planning()) return;
  const cuda::Floats judged = {static_cast<const float*>(losses.data), losses ? losses.numel() : 0};
  if (c.device.type == Device::cuda) return clip_on_gpu(c, grads, limit, sums, scalars, judged);

  const AdamwKernels& k = KRAIT_PICK_ISA(adamw_kernels);
  parallel_for(sums.numel(), [&](int64_t i) {
    const auto [index, begin, end] = pieces[static_cast<size_t>(i)];
    sums.as<double>()[i] = k.sum_of_squares(grads[index].as<float>() + begin, end - begin);
  });
  double sum = 0;
  for (int64_t i = 0; i < sums.numel(); ++i) sum += sums.as<double>()[i];
  const double norm = std::sqrt(sum);
  float* s = scalars.as<float>();
  s[kGradNorm] = static_cast<float>(norm);
  s[kClip] = limit > 0 && norm > limit ? static_cast<float>(limit / (norm + 1e-6)) : 1.0f;
  bool finite = std::isfinite(norm);
  for (int64_t i = 0; i < judged.n; ++i) finite = finite && std::isfinite(judged.data[i]);
  if (!finite) s[kClip] = 0;
}

}  // namespace krait::ops
