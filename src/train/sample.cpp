#include "krait/train/sample.h"

#include "krait/autograd/plan.h"
#include "krait/ops/sampler/sampler.h"

namespace krait {

std::string sample_text(const models::LanguageModel& model, const Tokenizer& tokenizer,
                        const std::string& prompt, int64_t n, DType activation, uint64_t seed) {
  std::vector<int32_t> tokens = tokenizer.encode(prompt, false);
  if (tokens.empty()) tokens.push_back(0);  // something to start from
  model.check_tokens(tokens.data(), static_cast<int64_t>(tokens.size()));
  const size_t prompt_size = tokens.size();

  nn::State state = model.make_state(1, static_cast<int64_t>(prompt_size) + n, {activation});
  models::Pass pass;
  pass.state_in = pass.state_out = &state;
  size_t fed = 0;
  Tensor logits;
  Staging staging;
  // Feeds what the state has not read yet.
  const auto feed = [&](Context& c) {
    const int64_t L = static_cast<int64_t>(tokens.size() - fed);
    const Tensor ids = staging.put(c, 0, Tensor(tokens.data() + fed, DType::i32, {1, L}));
    const Tensor hidden = model.hidden(c, ids, pass);
    logits = model.logits(c, hidden.slice(1, L - 1, L).reshape({1, hidden.size(2)}));
  };
  Context like;
  like.device = model.params().device();
  like.activation = activation;
  Arena arena(plan(like, false, feed).bytes + (size_t{1} << 20), like.device);
  const ops::SamplerOptions options = {.temperature = 0.8f, .seed = seed};
  for (int64_t i = 0; i < n; ++i) {
    arena.reset();
    Context c = like;
    c.arena = &arena;
    feed(c);
    fed = tokens.size();
    const ops::SampleRow row = {tokens, 0, static_cast<uint64_t>(i)};
    tokens.push_back(
        ops::sample(c, logits, model.config().vocab_size, options, {&row, 1})[0].token);
  }
  return tokenizer.decode(std::span(tokens).subspan(prompt_size));
}

}  // namespace krait
