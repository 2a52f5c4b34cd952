// Tables of presets: arrays of structs with a `name`.
#pragma once
#include <string>
#include <vector>

#include "krait/base/error.h"

namespace krait::models {

template <class Table>
std::vector<std::string> names_of(const Table& presets) {
  std::vector<std::string> names;
  for (const auto& p : presets) names.emplace_back(p.name);
  return names;
}

// Error where there is no such one.
template <class Table>
const auto& named(const Table& presets, const std::string& name) {
  for (const auto& p : presets)
    if (name == p.name) return p;
  fail("no preset is named \"{}\"; known: {}", name, fmt::join(names_of(presets), ", "));
}

}  // namespace krait::models
