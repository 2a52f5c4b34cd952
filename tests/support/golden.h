// What the tests over golden cases of single operations share: the variants of a case and their tensors.
#pragma once
#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "krait/base/json.h"
#include "krait/io/safetensors.h"
#include "krait/nn/param.h"
#include "krait/testing/files.h"
#include "krait/testing/op_test.h"

namespace krait::testing {

// The systems that are language models here; the others have tests of their own.
inline bool is_language_model(const std::string& system) {
  // One a line.
  // clang-format off
  static const std::set<std::string> known = {
      "mamba1",
      "falcon-mamba",
      "moe-mamba",
      "mamba2",
      "transformerpp",
      "mamba3-siso",
      "mamba3-mimo",
      "mamba2-hybrid",
      "llama",
      "gpt-neox",
      "jamba",
      "bamba",
      "nemotron-h",
      "falcon-h1",
      "zamba2",
  };
  // clang-format on
  return known.count(system) > 0;
}

// Of a test over a case whose sizes it does not choose.
constexpr size_t kGoldenMemory = size_t{64} << 20;

constexpr const char* kS4InitialValues = "s4 initial values";

// A layer of S4 or S4D alone, in whatever variant.
inline bool is_s4_layer(const std::string& system) {
  return system.starts_with("s4") && system != kS4InitialValues;
}

// A tensor of a parameter's shape as files hold it: whole under one of its two names, the one that `has` knows,
// or in its parts.
template <class Has>
std::vector<std::pair<std::string, Tensor>> stored_parts(const nn::Param& p, const Tensor& t,
                                                         const Has& has) {
  if (p.parts.empty()) return {{has(p.name) ? p.name : p.original, t}};
  std::vector<std::pair<std::string, Tensor>> all;
  for (size_t i = 0; i < p.parts.size(); ++i)
    all.emplace_back(p.parts[i], t.select(0, static_cast<int64_t>(i)));
  return all;
}

// One variant of an operation: <variant>.in.* float32, .out.*, .cotangent.*, .grad.*.
struct GoldenVariant {
  std::string name;
  Json options;    // of case.json
  Json tolerance;  // largest errors of the foreign float32 run
  TensorFile file;

  const Tensor* find(const std::string& what) const { return file.find(name + "." + what); }
  const Tensor& at(const std::string& what) const { return file.at(name + "." + what); }
  // Ours may be up to 4 times as far off as the foreign float32 run. That may have been lucky where it has few
  // numbers: it is taken to be off by a rounding of the largest besides.
  double bound(const std::string& quantity, const Values& exact) const {
    const auto foreign = tolerance.at(quantity + "_f32_max_abs_err").get<double>();
    return 4 * (foreign + rounding(DType::f32) * max_abs(exact));
  }
};

// The bound of gradients, where a case states no foreign error: a tensor may be four times as far off, relative to its
// largest value, as the worst tensor of a plain float32 run (one may have been lucky), and one rounding.
struct PlainGradients {
  double worst = 0;
  void add(const Values& plain, const Values& exact) {
    if (max_abs(exact) > 0) worst = std::max(worst, max_abs_error(plain, exact) / max_abs(exact));
  }
  double bound(const Values& exact) const {
    return (4 * worst + rounding(DType::f32)) * max_abs(exact);
  }
};

// All variants of all cases of this system under the folder of golden files.
inline std::vector<GoldenVariant> golden_variants(const std::filesystem::path& folder,
                                                  const std::string& system) {
  std::vector<GoldenVariant> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (!std::filesystem::exists(entry.path() / "case.json")) continue;
    const Json about = read_json(entry.path() / "case.json");
    if (about.value("system", "") != system || !about.contains("variants")) continue;
    const TensorFile file = read_safetensors(entry.path() / "case.safetensors");
    for (const auto& [name, options] : about.at("variants").items())
      found.push_back({name, options, about.at("tolerance").at(name), file});
  }
  return found;
}

// A contiguous float32 tensor of the context with the two last axes of a (B, E, L) tensor swapped; `parts` neighbours
// on the last one stay side by side: of (B, E, L parts) comes (B, L, E parts).
inline Tensor swapped(TestContext& test, const Tensor& t, int64_t parts = 1) {
  const int64_t B = t.size(0), E = t.size(1), L = t.size(2) / parts;
  const Tensor out = test.tensor({B, L, E * parts}, DType::f32);
  for (int64_t i = 0; i < out.numel(); ++i) {
    const int64_t part = i % parts, e = i / parts % E, l = i / (parts * E) % L,
                  b = i / (parts * E * L);
    set(out, i, get(t, ((b * E + e) * L + l) * parts + part));
  }
  return out;
}

// A float32 copy in the context.
inline Tensor copied(TestContext& test, const Tensor& t) {
  const Tensor out = test.tensor(t.shape, DType::f32);
  copy_host(t, out);
  return out;
}

}  // namespace krait::testing

// Ends a test that found none of its cases.
#define KRAIT_GOLDEN_FOUND(n, system) \
  if ((n) == 0) GTEST_SKIP() << "no golden case of the system " << (system)
