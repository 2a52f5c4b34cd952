// Tables of cases for INSTANTIATE_TEST_SUITE_P.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace krait::testing {

// Returns add(name, change), which appends to `all` what `change` makes of the default case.
template <class Case>
auto adder(std::vector<Case>& all) {
  return [&all](std::string name, auto change) {
    Case k;
    change(k);
    k.name = std::move(name);
    all.push_back(std::move(k));
  };
}

}  // namespace krait::testing
