// Tokens of a thread's channels, which come through shared memory some groups before their turn.
#pragma once
#include <cstdint>

#include "krait/tensor/cuda/math.h"
#include "krait/tensor/cuda/mma.h"

namespace krait::cuda {

constexpr int kGroup = 4;  // tokens that a thread takes in before it looks for more

// V neighbouring elements as they stand in memory, in registers of four bytes.
template <class T, int V>
struct alignas(sizeof(T) * V) Words {
  uint32_t word[sizeof(T) * V / 4];

  __device__ void widen(float (&to)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (sizeof(T) == 4) {
        to[v] = __uint_as_float(word[v]);
      } else {
        to[v] = v % 2 ? high_bf16(word[v / 2]) : low_bf16(word[v / 2]);
      }
    }
  }
};

// A step between rows that stays in registers: else it is multiplied out for each token.
__device__ inline int64_t in_registers(int64_t step) {
  asm("" : "+l"(step));
  return step;
}

// Tokens of one tensor on their way into shared memory, kAhead groups before the one at work: a thread copies what it
// reads itself, no barrier is needed.
template <class T, int V, int kAhead>
class Ring {
 public:
  static constexpr int kGroups = kAhead + 1;
  static constexpr size_t bytes(unsigned threads) {
    return sizeof(Words<T, V>) * kGroups * kGroup * threads;
  }
  // The tokens stand `step` elements apart from `from` on; `left` of them are there. `memory` is that of the block.
  __device__ Ring(unsigned char* memory, int thread, int threads, const T* from, int64_t step,
                  int left)
      : at_(reinterpret_cast<Words<T, V>*>(memory) + thread),
        threads_(threads),
        from_(from),
        step_(in_registers(step)),
        left_(left) {}
  // The next group into place `slot`.
  __device__ void fetch(int slot) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i, from_ += step_) {
      if (i >= left_) continue;
      copy_async<sizeof(Words<T, V>)>(at_ + (slot * kGroup + i) * threads_, from_);
    }
    left_ -= kGroup;
  }
  __device__ void read(int slot, int i, float (&to)[V]) const {
    at_[(slot * kGroup + i) * threads_].widen(to);
  }

 private:
  Words<T, V>* at_;
  int threads_;
  const T* from_;
  int64_t step_;
  int left_;
};

// Calls work(g, slot) for each of the groups, once fetch(slot) of it, called in their order, has arrived.
template <int kAhead, class Fetch, class Work>
__device__ __forceinline__ void for_groups(int groups, const Fetch& fetch, const Work& work) {
#pragma unroll
  for (int g = 0; g < kAhead; ++g) {
    if (g < groups) fetch(g);
    commit_copies();
  }
  int slot = 0;
  for (int g = 0; g < groups; ++g) {
    const int free = slot == 0 ? kAhead : slot - 1;  // of the group before
    if (g + kAhead < groups) fetch(free);
    commit_copies();
    wait_for_copies<kAhead>();
    work(g, slot);
    slot = slot == kAhead ? 0 : slot + 1;
  }
}

}  // namespace krait::cuda
