// What the machine has to give.
#pragma once
#include <cstddef>

namespace krait {

// Bytes that this process could still take without swapping: what the kernel calls available, or what the
// control group (a container's limit) leaves, whichever is less. SIZE_MAX where neither is known.
size_t available_memory();

}  // namespace krait
