// Support for tests of files: a folder that cleans up after itself, the golden files, and the ways to damage
// a file.
#pragma once
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "krait/testing/errors.h"

namespace krait::testing {

class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "krait-test-XXXXXX").string();
    require(::mkdtemp(name.data()) != nullptr, "cannot make a folder for the test");
    path_ = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// The folder of golden files: $KRAIT_GOLDEN, else ../shared/golden beside the repository. Empty if it is
// not there: use KRAIT_GOLDEN_OR_SKIP.
inline std::filesystem::path golden_folder() {
  const char* set = std::getenv("KRAIT_GOLDEN");
  const std::filesystem::path folder =
      set ? std::filesystem::path(set)
          : std::filesystem::path(KRAIT_SOURCE_DIR) / "../shared/golden";
  return std::filesystem::is_directory(folder) ? std::filesystem::canonical(folder)
                                               : std::filesystem::path();
}

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Calls parse on every prefix of `good` and on every copy with one bit flipped, each in memory of exactly
// its size. parse may return or throw Error; anything else fails the test. Returns how many threw.
inline int damage(const std::string& good,
                  const std::function<void(std::span<const std::byte>)>& parse) {
  int refused = 0;
  const auto attempt = [&](const std::string& bytes, const std::string& what) {
    const std::vector<std::byte> exact(as_bytes(bytes).begin(), as_bytes(bytes).end());
    try {
      parse(exact);
    } catch (const Error&) {
      ++refused;
    } catch (const std::exception& e) {
      ADD_FAILURE() << what << ": " << e.what();
    }
  };
  for (size_t n = 0; n < good.size(); ++n)
    attempt(good.substr(0, n), fmt::format("cut to {} bytes", n));
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bytes = good;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    attempt(bytes, fmt::format("bit {} flipped", bit));
  }
  return refused;
}

}  // namespace krait::testing

#define KRAIT_GOLDEN_OR_SKIP(folder)                                      \
  const std::filesystem::path folder = ::krait::testing::golden_folder(); \
  if (folder.empty()) GTEST_SKIP() << "no golden files: set KRAIT_GOLDEN"
