// The distribution that the sampler draws from, in plain scalar code, by sorting everything.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "krait/ops/sampler/sampler.h"

namespace krait::ops::reference {

inline std::vector<double> distribution(std::vector<double> logits, const SamplerOptions& o,
                                        std::span<const int32_t> history) {
  const std::vector<double> before = logits;
  const double penalty = o.repetition_penalty;
  for (const int32_t id : history) {
    const auto i = static_cast<size_t>(id);
    if (i < logits.size()) logits[i] = before[i] > 0 ? before[i] / penalty : before[i] * penalty;
  }
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<double> p(logits.size(), 0.0);
  if (o.temperature == 0) {
    p[order[0]] = 1;
    return p;
  }
  if (o.top_k > 0 && static_cast<size_t>(o.top_k) < order.size())
    order.resize(static_cast<size_t>(o.top_k));
  const auto normalise = [&] {
    double sum = 0;
    for (size_t i : order) sum += std::exp((logits[i] - logits[order[0]]) / o.temperature);
    for (size_t i : order) p[i] = std::exp((logits[i] - logits[order[0]]) / o.temperature) / sum;
  };
  normalise();
  if (o.top_p < 1) {
    double sum = 0;
    size_t keep = 0;
    while (keep < order.size() && sum < o.top_p) sum += p[order[keep++]];
    for (size_t i = keep; i < order.size(); ++i) p[order[i]] = 0;
    order.resize(keep);
  }
  const double floor = o.min_p * p[order[0]];
  std::erase_if(order, [&](size_t i) {
    const bool out = p[i] < floor;
    if (out) p[i] = 0;
    return out;
  });
  normalise();
  return p;
}

}  // namespace krait::ops::reference
