// What somebody may have meant by a word that is not known.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace CLI {
class App;
}

namespace krait::cli {

// The known word closest to `word`: one that begins with it, or one that a third of its letters, left out, put in,
// changed or swapped with their neighbours, make of it. "": none is near.
std::string near_miss(std::string_view word, std::span<const std::string> known);

// ", did you mean --prompt?" or "": `before` is set before the word (such as "--").
std::string did_you_mean(std::string_view word, std::span<const std::string> known,
                         std::string_view before = "");

// Of a command, less their dashes.
std::vector<std::string> option_names(const CLI::App& app);

}  // namespace krait::cli
