// What the fuzz targets share. A target hands its bytes to a parser: the parser may return or throw
// Error; another exception, a sanitizer's report, too much memory or time is a find.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "krait/base/error.h"

namespace krait::fuzz {

inline int run(const uint8_t* data, size_t size,
               const std::function<void(std::span<const std::byte>)>& parse) {
  try {
    parse({reinterpret_cast<const std::byte*>(data), size});
  } catch (const Error&) {
  }
  return 0;
}

// Reads every element, so that a view outside of the file's memory is found. A template: the layers below io
// have fuzz targets too, and no TensorFile.
template <class TensorFile>
void touch(const TensorFile& file) {
  volatile double last = 0;
  for (const auto& [name, t] : file)
    for (int64_t i = 0; i < t.numel(); ++i) last = get(t, i);
}

}  // namespace krait::fuzz
