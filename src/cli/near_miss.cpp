#include "krait/cli/near_miss.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "krait/base/error.h"

namespace krait::cli {

// Damerau's distance between two words, where no letter is changed twice.
static size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i)
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      const size_t changed = d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, changed});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[a.size()][b.size()];
}

std::string near_miss(std::string_view word, std::span<const std::string> known) {
  constexpr size_t kLongest = 64;  // no word that is known is as long
  std::string nearest;
  if (word.size() < 2 || word.size() > kLongest) return nearest;
  size_t least = word.size() / 3 + 1;
  for (const std::string& candidate : known) {
    const size_t d = candidate.starts_with(word) ? 0 : distance(word, candidate);
    if (d < least) least = d, nearest = candidate;
  }
  return nearest;
}

std::string did_you_mean(std::string_view word, std::span<const std::string> known,
                         std::string_view before) {
  const std::string nearest = near_miss(word, known);
  return nearest.empty() ? "" : fmt::format(", did you mean {}{}?", before, nearest);
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back(name);
  return names;
}

}  // namespace krait::cli
