// What a file's name says.
#pragma once
#include <filesystem>
#include <string>

namespace krait {

// ".png" of "a.PNG": the extension, its letters A to Z in small.
inline std::string ending_of(const std::filesystem::path& file) {
  std::string ending = file.extension().string();
  for (char& c : ending)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return ending;
}

}  // namespace krait
