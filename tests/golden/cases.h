// The golden cases that are whole models: found by listing the folder, run by their "system".
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "krait/base/json.h"
#include "krait/io/safetensors.h"
#include "krait/testing/files.h"
#include "krait/testing/golden.h"
#include "krait/testing/op_test.h"

namespace krait::testing {

// Folders with case.json and model/, in name order; one empty path where there are none at all, so that a
// test that skips says so.
inline std::vector<std::filesystem::path> model_cases() {
  std::vector<std::filesystem::path> cases;
  if (const std::filesystem::path folder = golden_folder(); !folder.empty())
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      if (std::filesystem::exists(entry.path() / "case.json") &&
          std::filesystem::is_directory(entry.path() / "model"))
        cases.push_back(entry.path());
  std::sort(cases.begin(), cases.end());
  if (cases.empty()) cases.emplace_back();
  return cases;
}

inline std::string case_name(const ::testing::TestParamInfo<std::filesystem::path>& info) {
  std::string name = info.param.empty() ? "none" : info.param.filename().string();
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); },
      '_');
  return name;
}

struct GoldenCase {
  explicit GoldenCase(const std::filesystem::path& folder)
      : model(folder / "model"),
        json(read_json(folder / "case.json")),
        data(read_safetensors(folder / "case.safetensors")) {}

  std::string system() const { return json.at("system"); }
  // Ours may be at most four times as wrong as the foreign float32 run.
  double bound(const std::string& key) const {
    return 4 * json.at("tolerance").at(key).get<double>();
  }
  // Where a case does not say how far off its states were: as far, relative to their largest value, as the
  // logits relative to their deviation.
  double state_bound(const std::string& kind, const Values& values) const {
    const std::string key = "state_" + kind + "_f32_max_abs_err";
    if (json.at("tolerance").contains(key)) return bound(key);
    return bound("logits_f32_max_abs_err") / json.at("logits_std").get<double>() * max_abs(values);
  }
  // Of a loss that is the mean over n tokens, a float32. A foreign run may have been lucky, its tokens' errors have
  // cancelled: a mean of n errors as large as the logits' is expected to be off by that over sqrt(n).
  double loss_bound(double exact, int64_t n) const {
    const double expected = bound("logits_f32_max_abs_err") / std::sqrt(static_cast<double>(n));
    return std::max(bound("loss_f32_abs_err"), expected) + rounding(DType::f32) * exact;
  }
  std::vector<int32_t> ids(const std::string& name) const {
    const Tensor& t = data.at(name);
    std::vector<int32_t> v(static_cast<size_t>(t.numel()));
    for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<int32_t>(t.as<int64_t>()[i]);
    return v;
  }

  std::filesystem::path model;
  Json json;
  TensorFile data;
};

}  // namespace krait::testing

// Skips, with the reason, what this build has no model for.
#define KRAIT_GOLDEN_LANGUAGE_MODEL(folder)                                    \
  if ((folder).empty()) GTEST_SKIP() << "no golden files: set KRAIT_GOLDEN";   \
  {                                                                            \
    const std::string system = read_json((folder) / "case.json").at("system"); \
    if (!testing::is_language_model(system))                                   \
      GTEST_SKIP() << "krait has no language model for the system " << system; \
  }
