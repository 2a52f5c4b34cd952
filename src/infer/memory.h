// The machine's free memory, asked before much of it is taken.
#pragma once
#include <cstddef>
#include <string>

#include "krait/tensor/tensor.h"

namespace krait {

// Throws Error with both numbers where `bytes` are more than the device can give; `what` says what for.
void require_memory(size_t bytes, const std::string& what, Device device = {});

std::string bytes_text(size_t bytes);  // "1.50 GB"

}  // namespace krait
