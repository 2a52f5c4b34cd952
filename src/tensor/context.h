// What every op is handed first: where to run, where to take memory, whether to record for backward.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "krait/base/rng.h"
#include "krait/tensor/arena.h"
#include "krait/tensor/tensor.h"

namespace krait {

class Tape;

// Work of a step as the ops themselves state it: each input read once, each output written once.
struct Cost {
  double bytes = 0;
  double flops = 0;
};

// The results inside a segment that are kept for its second run, in backward (see
// autograd/segment.h).
struct Keeper {
  bool keeps = true;   // false: nothing is kept, whatever it costs to compute again
  bool again = false;  // this is the second run: alloc hands out the kept tensors, in order
  bool open = false;   // an op has a Kept open: what it allocates now is kept
  std::vector<Tensor> tensors;  // kept
  size_t next = 0;              // second run: index of the tensor that is handed out next
  // Allocations so far in this run, and how many the first run made in all. If backward does not read the last of them,
  // the op that makes it, which is the last to run, need not compute it in the second run.
  size_t taken = 0, in_all = 0;
  const void* last = nullptr;
  bool last_is_unread = false;

  Tensor hand_out(const Shape& shape, DType dtype);
  bool skips() const { return again && (open || (last_is_unread && taken == in_all)); }
};

struct Context {
  Device device;
  Stream stream = nullptr;  // of a GPU: where ops queue their work
  Arena* arena = nullptr;
  Tape* tape = nullptr;           // set: ops record what backward needs
  DType activation = DType::f32;  // of matrix products and what they feed; f32 or bf16
  bool training = false;          // dropout is active
  Philox rng;                     // dropout masks; `rng.stream` is advanced by each op that draws
  // Optional, on the device: a number that is added to rng.stream when an op draws (on a GPU by its
  // kernel), so that a step which was recorded once draws other numbers each time it is replayed.
  const uint64_t* rng_offset = nullptr;

  // Where set (bench, plan), every op adds its cost here.
  std::map<std::string, Cost>* costs = nullptr;

  // Memory must not be touched: there is none, or it already holds what the op would write.
  bool planning() const { return arena->is_planning() || (keeper && keeper->skips()); }

  // About the segment that runs, to be asked outside of a Kept: whether it keeps everything, and
  // whether backward will compute again what is cheap.
  bool keeps_all() const { return keeper && keeper->open; }
  bool computes_cheap_again() const { return keeper && keeper->keeps && !keeper->open; }

  // The result of an op: a fresh tensor that lives until its segment ends (see autograd/segment.h).
  // keep = false: even inside a Kept its values need not last until the segment runs again.
  Tensor alloc(const Shape& shape, DType dtype, bool keep = true);
  // A tensor that lives until the enclosing Scratch ends.
  Tensor scratch(const Shape& shape, DType dtype);

  // The generator of an op that draws now.
  Philox draw() {
    Philox r = rng;
    if (rng_offset && device.type == Device::cpu) r.stream += *rng_offset;
    ++rng.stream;
    return r;
  }

  void cost(const char* op, double bytes, double flops) {
    if (costs && !(keeper && keeper->skips())) {
      Cost& c = (*costs)[op];
      c.bytes += bytes;
      c.flops += flops;
    }
  }

  // Set by segments alone: alloc takes from the high end; and the keeper of the segment that runs.
  bool results_at_high_end = false;
  Keeper* keeper = nullptr;
  int open_scratch = 0;  // Scratch objects that are alive
};

// Gives back all that Context::scratch took since. Open it after the op's results are allocated and, in
// a backward function, after every Tape::grad_into: what those take must outlive the scratch. (Both
// refuse while a Scratch is open.)
class Scratch {
 public:
  explicit Scratch(Context& c) : c_(c), mark_(c.arena->high()) { ++c.open_scratch; }
  ~Scratch() {
    c_.arena->set_high(mark_);
    --c_.open_scratch;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  Context& c_;
  size_t mark_;
};

}  // namespace krait
