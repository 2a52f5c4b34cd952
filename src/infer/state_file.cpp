#include "krait/infer/state_file.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "krait/base/quote.h"
#include "krait/io/safetensors.h"

namespace krait {

namespace {

constexpr const char* kFormat = "krait-state";
constexpr const char* kVersion = "1";

std::string metadata_of(const TensorFile& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  return found == file.metadata.end() ? "" : found->second;
}

// "12,7" -> {12, 7}
std::vector<int64_t> parse_counts(const std::string& text, const std::string& where) {
  std::vector<int64_t> counts;
  const char *p = text.data(), *end = p + text.size();
  for (;;) {
    int64_t n = 0;
    const auto [next, error] = std::from_chars(p, end, n);
    require(error == std::errc() && n > 0 && (next == end || *next == ','),
            "{}: metadata \"tokens\": expected counts like \"12,7\", got {}", where, quote(text));
    counts.push_back(n);
    if (next == end) return counts;
    p = next + 1;
  }
}

const Tensor& checked(const TensorFile& file, const std::string& name, const Shape& shape) {
  const Tensor& t = file.at(name);
  require(t.dtype == DType::f32 && t.shape == shape,
          "{}: tensor \"{}\": expected float32 {}, got {} {}", file.path(), name, shape,
          name_of(t.dtype), t.shape);
  return t;
}

// Numbers that no run leaves would be met by an op far away, or on a GPU by nobody.
void check_finite(const TensorFile& file, const std::string& name, const Tensor& row) {
  const float* x = row.as<float>();
  for (int64_t i = 0; i < row.numel(); ++i)
    require(std::isfinite(x[i]), "{}: tensor \"{}\": expected finite numbers, got {}", file.path(),
            name, x[i]);
}

}  // namespace

void save_state(const std::filesystem::path& path, std::span<const Snapshot> rows,
                const std::string& model_hash) {
  require(!rows.empty(), "{}: no sequence to save", path.string());
  const auto B = static_cast<int64_t>(rows.size());
  int64_t longest = 0;
  for (const Snapshot& s : rows) longest = std::max(longest, s.tokens);
  nn::State all(rows[0].state.parts(), B, longest);
  for (size_t p = 0; p < all.parts().size(); ++p) zero_bytes(all.tensor(p));
  std::vector<float> logits;
  std::string counts;
  for (int64_t b = 0; b < B; ++b) {
    const Snapshot& s = rows[static_cast<size_t>(b)];
    require(s.tokens > 0, "{}: a sequence that has read nothing has no state to save",
            path.string());
    all.copy_row(b, s.state, 0);
    logits.insert(logits.end(), s.logits.begin(), s.logits.end());
    if (b > 0) counts += ',';
    counts += std::to_string(s.tokens);
  }
  std::vector<NamedTensor> tensors;
  for (size_t p = 0; p < all.parts().size(); ++p)
    tensors.push_back({all.parts()[p].name, all.tensor(p)});
  tensors.push_back(
      {"logits", Tensor(logits.data(), DType::f32, {B, static_cast<int64_t>(logits.size()) / B})});
  write_safetensors(
      path, tensors,
      {{"format", kFormat}, {"version", kVersion}, {"model", model_hash}, {"tokens", counts}});
}

std::vector<Snapshot> load_state(const std::filesystem::path& path,
                                 const models::LanguageModel& model,
                                 const std::string& model_hash) {
  return parse_state(read_safetensors(path), model, model_hash);
}

std::vector<Snapshot> parse_state(const TensorFile& file, const models::LanguageModel& model,
                                  const std::string& model_hash) {
  require(metadata_of(file, "format") == kFormat,
          "{}: expected a state file of krait, this is another file", file.path());
  require(metadata_of(file, "version") == kVersion,
          "{}: expected version {} of state files, got {}", file.path(), kVersion,
          quote(metadata_of(file, "version")));
  require(
      metadata_of(file, "model") == model_hash,
      "{}: this is a state of the model {}, but the model here is {}: use it with its own model",
      file.path(), quote(metadata_of(file, "model")), quote(model_hash));
  const std::vector<int64_t> counts = parse_counts(metadata_of(file, "tokens"), file.path());
  const auto B = static_cast<int64_t>(counts.size()), V = model.config().padded_vocab();

  const int64_t longest = *std::max_element(counts.begin(), counts.end());
  std::vector<Tensor> parts;
  for (const nn::StatePart& part : model.state_parts())
    parts.push_back(checked(file, part.name, nn::shape_of(part, B, longest)));
  const Tensor logits = checked(file, "logits", {B, V});
  std::vector<Snapshot> rows(counts.size());
  for (int64_t b = 0; b < B; ++b) {
    Snapshot& s = rows[static_cast<size_t>(b)];
    s.tokens = counts[static_cast<size_t>(b)];
    s.state = model.make_state(1, s.tokens);
    for (size_t p = 0; p < parts.size(); ++p) {
      Tensor row = parts[p].slice(0, b, b + 1);
      if (model.state_parts()[p].per_token) row = row.slice(1, 0, s.tokens);
      const nn::StatePart& part = model.state_parts()[p];
      check_finite(file, part.name, row);
      require(!nn::counts_tokens(part) || row.as<float>()[0] == static_cast<float>(s.tokens),
              "{}: tensor \"{}\": expected the {} tokens that were read, got {}", file.path(),
              part.name, s.tokens, row.as<float>()[0]);
      store(row, s.state.tensor(p));
    }
    check_finite(file, "logits", logits.slice(0, b, b + 1));
    const float* from = logits.as<float>() + b * V;
    s.logits.assign(from, from + V);
  }
  return rows;
}

}  // namespace krait
