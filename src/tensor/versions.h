// Of the libraries that a build with CUDA calls.
#pragma once
#include <string>

namespace krait {

// "CUDA 13.0, cuBLASLt 13.1.0"; "" in a build without. Asks no device.
std::string cuda_versions();

}  // namespace krait
