#include "krait/ops/sequences.h"

namespace krait::ops {

Sequences::Sequences(const Context& c, const char* op, int64_t B, int64_t L, const Packing* packing,
                     const Tensor& state_in, const Tensor& state_out)
    : B_(B),
      L_(L),
      packed_(packing != nullptr),
      has_in_(state_in),
      has_out_(state_out),
      packing_(packing ? *packing : Packing()) {
  const auto check_rows = [&](const char* name, const Tensor& t) {
    require(packed_ || !t || t.size(0) == B, "[{}] {}: expected {} rows, one a batch row, got {}",
            op, name, B, t.size(0));
  };
  check_rows("state_in", state_in);
  check_rows("state_out", state_out);
  if (packed_ && !c.planning())
    check_packing(c, op, state_in ? state_in.size(0) : 0, state_out ? state_out.size(0) : 0);
}

void Sequences::check_packing(const Context& c, const char* op, int64_t rows_in,
                              int64_t rows_out) const {
  const Packing& p = packing_;
  require(p.begin.shape == Shape{p.n + 1} && p.state_in.shape == Shape{p.n} &&
              p.state_out.shape == Shape{p.n},
          "[{}] packing of {} sequences: expected begin ({},) and states ({},), got {}, {}, {}", op,
          p.n, p.n + 1, p.n, p.begin.shape, p.state_in.shape, p.state_out.shape);
  if (c.device.type == Device::cuda) return;  // what is in it is not known on the host
  const int64_t* begin = p.begin.as<int64_t>();
  require(begin[0] == 0 && begin[p.n] == B_ * L_,
          "[{}] packing: expected to go from 0 to B*L = {}, goes from {} to {}", op, B_ * L_,
          begin[0], begin[p.n]);
  for (int64_t s = 0; s < p.n; ++s) {
    require(begin[s] <= begin[s + 1],
            "[{}] packing: sequence {} ends at {}, before it begins at {}", op, s, begin[s + 1],
            begin[s]);
    const Sequence q = (*this)[s];
    require(!has_in_ || q.in < rows_in, "[{}] packing: sequence {} starts from row {} of {} states",
            op, s, q.in, rows_in);
    require(!has_out_ || q.out < rows_out, "[{}] packing: sequence {} ends in row {} of {} states",
            op, s, q.out, rows_out);
  }
}

}  // namespace krait::ops
