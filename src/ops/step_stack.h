// What a kernel that takes one token through all layers of a model is called with; each room has its own Layer.
#pragma once
#include <cstdint>

namespace krait::cuda {

constexpr int kMostStackLayers = 64;
// D of models whose layers a cluster takes (ops/cluster_parts.cuh), and messages: x and z.
constexpr int64_t kClusterWidth = 768, kClusterMessages = kClusterWidth / 2 + 2 * kClusterWidth;

template <class Layer>
struct StackCall {
  int layers = 0;
  int64_t B = 1, D = 0;
  bool state_bf16 = false;
  float* stream = nullptr;   // (B, D), overwritten
  void* messages = nullptr;  // scratch, see the room's
  Layer layer[kMostStackLayers] = {};
};

}  // namespace krait::cuda
