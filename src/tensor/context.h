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

// What a segment keeps of its inside for a second run (see autograd/segment.h).
struct Keeper {
  bool keeps = true;   // false: nothing, whatever it costs
  bool again = false;  // the second run: what was kept is handed out in the order it was taken
  bool open = false;   // what is allocated now is kept
  std::vector<Tensor> tensors;
  size_t next = 0;  // of the second run
  // Allocations of a run so far; of the first one in all, and whether the last one is a result that backward does not
  // read: the op that takes it in the second run, the last to run, need not compute it.
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
  // On the device, optional: added to rng.stream when an op draws, on a GPU by its kernel. A step that was
  // recorded once draws other numbers each time.
  const uint64_t* rng_offset = nullptr;

  // Counted for every op, where set (bench, plan).
  std::map<std::string, Cost>* costs = nullptr;

  // Memory is not to be touched: there is none, or it holds what would be written already.
  bool planning() const { return arena->is_planning() || (keeper && keeper->skips()); }

  // Of the segment that runs, asked outside of a Kept: all is kept; what is cheap is computed again.
  bool keeps_all() const { return keeper && keeper->open; }
  bool computes_cheap_again() const { return keeper && keeper->keeps && !keeper->open; }

  // A fresh tensor that lives until its segment ends (see autograd/segment.h): the result of an op. keep: false where a
  // segment that runs again need not hand it out with what it held.
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

  bool results_at_high_end = false;  // set by segments that forget; never by ops
  Keeper* keeper = nullptr;          // of the segment that runs and will run again; never by ops
  int open_scratch = 0;
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
