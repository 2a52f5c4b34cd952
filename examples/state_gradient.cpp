// State is a value: it has a gradient. How should the memory of a model change so that a given sentence
// becomes more likely? A few steps down the gradient of the initial state alone, weights untouched.
#include <krait/krait.h>

#include <cstdio>
#include <string_view>

int main() {
  krait::models::LanguageModel model(krait::models::preset("byte-tiny"));
  model.params().allocate(krait::nn::Purpose::inference,
                          krait::DType::f32);  // no gradients of these
  model.params().initialize(1);
  const std::string_view text = "the state is a value";
  std::vector<int32_t> ids(text.begin(), text.end());
  const int64_t L = static_cast<int64_t>(ids.size()) - 1;
  const krait::Tensor tokens(ids.data(), krait::DType::i32, {1, L});
  const krait::Tensor targets(ids.data() + 1, krait::DType::i32, {1, L});

  krait::Arena arena(256 << 20);
  krait::Tape tape;
  krait::Context c;
  c.arena = &arena;
  c.tape = &tape;
  krait::nn::State memory = model.make_state(1);
  double first = 0, loss = 0;
  for (int step = 0; step <= 20; ++step) {
    arena.reset();
    tape.reset();
    for (size_t i = 0; i < memory.parts().size(); ++i) tape.watch(memory.tensor(i));
    krait::models::Pass pass;
    pass.state_in = &memory;
    const krait::Tensor h = model.hidden(c, tokens, pass);
    loss = krait::get(model.loss(c, h, targets, 1.0f / static_cast<float>(L)).loss, 0);
    if (step == 0) first = loss;
    std::printf("step %2d: loss %.5f\n", step, loss);
    tape.backward(c);
    for (size_t i = 0; i < memory.parts().size(); ++i) {
      const krait::Tensor h0 = memory.tensor(i), dh0 = tape.grad(h0);
      for (int64_t k = 0; k < h0.numel(); ++k)
        krait::set(h0, k, krait::get(h0, k) - 10 * krait::get(dh0, k));
    }
  }
  return loss < first ? 0 : 1;
}
