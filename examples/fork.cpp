// State is a value: read a prompt once, fork what the model remembers, try two continuations and see
// which one it finds more likely. fork MODEL.
#include <krait/krait.h>

#include <cmath>
#include <cstdio>
#include <string_view>

static std::vector<int32_t> bytes(std::string_view text) { return {text.begin(), text.end()}; }

// log p(text | what the session has read); the session reads it.
static double log_likelihood(krait::Session& session, std::string_view text) {
  double total = 0;
  for (const int32_t token : bytes(text)) {
    const float* logits = session.logits().as<float>();
    double sum = 0;
    for (int64_t v = 0; v < session.logits().size(1); ++v) sum += std::exp(double{logits[v]});
    total += logits[token] - std::log(sum);
    session.step({&token, 1});
  }
  return total;
}

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const krait::LoadedModel loaded = krait::load_model(argv[1], {});
  krait::SessionOptions options;
  options.activation = loaded.dtype;
  krait::Session session(*loaded.model, options);
  const std::vector<int32_t> prompt = bytes("A long story, read only once, ends ");
  const std::span<const int32_t> row(prompt);
  session.read({&row, 1});

  const krait::Snapshot here = session.snapshot(0);
  double first = 0;
  for (const char* ending : {"well.", "badly.", "well."}) {
    session.restore(0, here);  // nothing is read again
    const double p = log_likelihood(session, ending);
    std::printf("log p(\"%s\") = %.4f\n", ending, p);
    if (first == 0) first = p;
    if (ending[0] == 'w' && p != first)
      return 1;  // the same fork gives the same number, to the bit
  }
}
