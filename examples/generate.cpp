// Load a model and let it write: generate MODEL [PROMPT].
#include <krait/krait.h>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const krait::LoadedModel loaded = krait::load_model(argv[1], {});
  const krait::models::LanguageModel& model = *loaded.model;
  krait::SessionOptions options;
  options.activation = loaded.dtype;
  krait::Session session(model, options);

  const std::string prompt = argc > 2 ? argv[2] : "Once upon a time";
  std::vector<int32_t> history;  // this model reads bytes; others need their tokenizer (krait/io)
  for (unsigned char byte : prompt) history.push_back(byte);
  const std::span<const int32_t> row(history);
  session.read({&row, 1});

  krait::ops::SamplerOptions how;
  how.temperature = 0.8f;
  how.top_p = 0.95f;
  std::printf("%s", prompt.c_str());
  for (uint64_t i = 0; i < 80; ++i) {
    const krait::ops::SampleRow from{history, 0, i};
    const int32_t next = krait::ops::sample(session.context(), session.logits(),
                                            model.config().vocab_size, how, {&from, 1})[0]
                             .token;
    std::putchar(next);
    history.push_back(next);
    session.step({&next, 1});  // costs the same for the 10th token and the 10 millionth
  }
  std::putchar('\n');
}
