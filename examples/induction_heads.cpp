// Induction heads (Gu and Dao 2023, section 4.1.2, appendix E.1): somewhere in random tokens a marker stands
// before another token; when the marker comes again, at the end, that token must follow. Trained at length
// 2^8 only, then read at lengths far beyond, with the state as the only memory.
//   induction_heads [STEPS [LOG2_OF_THE_LONGEST [cuda]]]
#include <krait/krait.h>

#include <cmath>
#include <cstdio>
#include <cstring>

using krait::Tensor;
constexpr auto f32 = krait::DType::f32;
constexpr int64_t B = 8, L = 256;
constexpr int32_t V = 16, marker = V - 1;

// `length` tokens; the answer is what follows the first of the two markers.
static int32_t make_sequence(const krait::Philox& random, uint64_t number, int64_t length,
                             int32_t* tokens) {
  const auto draw = [&](int64_t i, int64_t below) {
    return static_cast<int64_t>(random.uniform((number << 24) + static_cast<uint64_t>(i)) *
                                static_cast<double>(below));
  };
  for (int64_t i = 0; i < length; ++i) tokens[i] = static_cast<int32_t>(draw(i, V - 1));
  const int64_t place = draw(length, length - 2);
  tokens[place] = tokens[length - 1] = marker;
  return tokens[place + 1];
}

static double accuracy(const krait::models::LanguageModel& model, int log2_length, int count) {
  krait::Session session(model, {});
  std::vector<int32_t> tokens(size_t{1} << log2_length);
  int right = 0;
  for (int i = 0; i < count; ++i) {
    const int32_t answer =
        make_sequence({2, static_cast<uint64_t>(log2_length)}, static_cast<uint64_t>(i),
                      static_cast<int64_t>(tokens.size()), tokens.data());
    session.restart(1);
    const std::span<const int32_t> row(tokens);
    session.read({&row, 1});
    float logits[V];
    krait::download(session.logits(), logits, session.context().stream);
    right += std::max_element(logits, logits + V) - logits == answer;
  }
  return static_cast<double>(right) / count;
}

int main(int argc, char** argv) {
  const int steps = argc > 1 ? std::atoi(argv[1]) : 30, longest = argc > 2 ? std::atoi(argv[2]) : 9;
  krait::Device device;
  if (argc > 3 && !std::strcmp(argv[3], "cuda")) device.type = krait::Device::cuda;
  krait::models::LanguageModel model(krait::models::mamba_config(64, 2, V, 1));
  model.params().allocate(krait::nn::Purpose::training, f32, false, device);
  model.params().initialize(1);
  krait::OwnStream stream(device);
  krait::Arena arena(256 << 20, device), kept(4096, device);
  krait::Staging staging;
  krait::Tape tape;
  krait::Context c{device, stream, &arena, &tape};
  const Tensor scalars(kept.take_low(512), f32, {krait::ops::kStepScalars}, device);
  std::vector<krait::ops::AdamwTensors> tensors;
  std::vector<Tensor> grads;
  for (krait::nn::Param& p : model.params()) {
    tensors.push_back({p.value, {}, p.var.grad, p.m, p.v, 0.0f});
    grads.push_back(p.var.grad);
  }
  double first = 0, mean = 0;
  std::vector<int32_t> tokens(B * L), targets(B * L, -1);  // -1: nothing is asked here
  for (int step = 1; step <= steps; ++step) {
    for (int64_t b = 0; b < B; ++b)
      targets[b * L + L - 1] =
          make_sequence({1, 0}, static_cast<uint64_t>(step * B + b), L, &tokens[b * L]);
    arena.reset();
    tape.reset();
    model.params().forget_gradients();
    const auto put = [&](size_t place, std::vector<int32_t>& v) {
      return staging.put(c, place, Tensor(v.data(), krait::DType::i32, {B, L}));
    };
    const Tensor in = put(0, tokens), asked = put(1, targets), hidden = model.hidden(c, in, {});
    const Tensor loss = model.loss(c, hidden, asked, 1.0f / B).loss;
    float value = 0, now[krait::ops::kStepScalars] = {};
    krait::download(loss, &value, stream);
    tape.backward(c);
    now[krait::ops::kLearningRate] = 1e-3f;
    now[krait::ops::kBias1] = static_cast<float>(1 - std::pow(0.9, step));
    now[krait::ops::kBias2] = static_cast<float>(1 - std::pow(0.999, step));
    krait::upload(now, scalars, stream);
    krait::ops::clip_grad_norm(c, grads, 1.0f, scalars);
    krait::ops::adamw(c, tensors, {0.9f, 0.999f, 1e-8f}, scalars);
    if (step == 1) first = mean = value;
    mean += 0.02 * (value - mean);
    if (step % 500 == 0 || step == steps) std::printf("step %d: loss %.4f\n", step, mean);
    if (mean < 1e-3) break;
  }
  for (int n = 6; n <= longest; ++n)
    std::printf("2^%d: %.1f%%\n", n, 100 * accuracy(model, n, n < 16 ? 256 : 32));
  return mean < first ? 0 : 1;
}
