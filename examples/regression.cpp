// A net of one's own, made of Krait blocks, on float inputs with a regression head: it learns to filter
// noise out of a sum of two sines. Any loss can stand at the end: write its derivative, run backward.
#include <krait/krait.h>

#include <cmath>
#include <cstdio>

namespace nn = krait::nn;
using krait::Context;
using krait::Tensor;
constexpr auto f32 = krait::DType::f32;
constexpr int64_t B = 8, L = 64, D = 32;

struct Filter {
  nn::ParamSet params;
  nn::Param& in = params.add("in.weight", {D, 1}, nn::normal(1.0));
  nn::PreNorm first = layer("layers.0"), second = layer("layers.1");
  nn::Param& out = params.add("out.weight", {1, D}, nn::normal(0.02));

  nn::PreNorm layer(const std::string& name) {
    nn::Mamba1Config sizes;
    sizes.d_model = D;
    sizes.d_inner = 2 * D;
    sizes.dt_rank = 2;
    nn::PreNorm block;
    block.add(nn::Norm::make(params, name + ".norm", krait::ops::NormKind::rms, D, 1e-5f),
              std::make_unique<nn::Mamba1>(params, name + ".mixer", sizes));
    return block;
  }

  Tensor operator()(Context& c, const Tensor& x) const {  // (B, L, 1) -> (B, L, 1)
    nn::BlockCall call;
    const Tensor r = krait::ops::linear(c, x, in.value, {}, f32);
    return krait::ops::linear(c, second.forward(c, first.forward(c, r, call), call), out.value, {},
                              f32);
  }
};

int main() {
  krait::Arena arena(256 << 20);
  krait::Tape tape;
  Context c;
  c.arena = &arena;
  c.tape = &tape;
  Filter net;
  net.params.allocate(nn::Purpose::training, f32);
  net.params.initialize(1);
  float scalars[krait::ops::kStepScalars] = {};
  const Tensor step_scalars(scalars, f32, {krait::ops::kStepScalars});
  std::vector<krait::ops::AdamwTensors> tensors;
  std::vector<Tensor> grads;
  for (nn::Param& p : net.params) {
    tensors.push_back({p.value, {}, p.var.grad, p.m, p.v, 0.0f});
    grads.push_back(p.var.grad);
  }
  double first = 0, loss = 0;
  for (int step = 1; step <= 60; ++step) {
    arena.reset();
    tape.reset();
    net.params.forget_gradients();
    const krait::Philox noise{7, static_cast<uint64_t>(step)};
    const Tensor x = c.alloc({B, L, 1}, f32), clean = c.alloc({B, L, 1}, f32);
    for (int64_t i = 0; i < B * L; ++i) {
      const double t = static_cast<double>(i % L),
                   phase = noise.normal(static_cast<uint64_t>(i / L));
      clean.as<float>()[i] = static_cast<float>(std::sin(0.2 * t + phase) + std::sin(0.5 * t));
      x.as<float>()[i] = clean.as<float>()[i] + static_cast<float>(0.5 * noise.normal(1000 + i));
    }
    const Tensor y = net(c, x);
    const Tensor dy = tape.grad_into(c, y).grad;  // of the mean squared error
    loss = 0;
    for (int64_t i = 0; i < B * L; ++i) {
      const float error = y.as<float>()[i] - clean.as<float>()[i];
      loss += error * error / (B * L);
      dy.as<float>()[i] = 2 * error / (B * L);
    }
    tape.backward(c);
    scalars[krait::ops::kLearningRate] = 3e-3f;
    scalars[krait::ops::kBias1] = static_cast<float>(1 - std::pow(0.9, step));
    scalars[krait::ops::kBias2] = static_cast<float>(1 - std::pow(0.95, step));
    krait::ops::clip_grad_norm(c, grads, 1.0f, step_scalars);
    krait::ops::adamw(c, tensors, {}, step_scalars);
    if (step == 1) first = loss;
    if (step % 10 == 0) std::printf("step %2d: mean squared error %.4f\n", step, loss);
  }
  return loss < first / 3 ? 0 : 1;
}
