// `krait bench op`: the ops around the mixers.
#include "krait/cli/bench_op_inputs.h"
#include "krait/ops/add/add.h"
#include "krait/ops/batch_norm/batch_norm.h"
#include "krait/ops/class_token/class_token.h"
#include "krait/ops/concat/concat.h"
#include "krait/ops/drop_path/drop_path.h"
#include "krait/ops/dropout/dropout.h"
#include "krait/ops/patches/patches.h"
#include "krait/ops/pool/pool.h"
#include "krait/ops/positions/positions.h"
#include "krait/ops/scale/scale.h"
#include "krait/ops/squared_error/squared_error.h"

namespace krait::cli {

namespace {

constexpr float kDropped = 0.1f;

OpCase add_case(const OpSizes& s) {
  return {{rows(s, width(s)), rows(s, width(s))},
          [](Context& c, const Tensors& in) { return ops::add(c, in[0], in[1]); }};
}

OpCase scale_case(const OpSizes& s) {
  return {{rows(s, width(s))},
          [](Context& c, const Tensors& in) { return ops::scale(c, in[0], 0.5f); }};
}

OpCase concat_case(const OpSizes& s) {
  return {{rows(s, width(s)), rows(s, width(s))},
          [](Context& c, const Tensors& in) { return ops::concat(c, in[0], in[1]); }};
}

OpCase dropout_case(const OpSizes& s) {
  return {{rows(s, width(s)), stream(s)}, [](Context& c, const Tensors& in) {
            c.training = true;
            return ops::dropout_add(c, in[0], in[1], kDropped);
          }};
}

OpCase drop_path_case(const OpSizes& s) {
  return {{rows(s, width(s)), stream(s)}, [](Context& c, const Tensors& in) {
            c.training = true;
            return ops::drop_path_add(c, in[0], in[1], kDropped);
          }};
}

OpCase batch_norm_case(const OpSizes& s) {
  const Shape D = {width(s)};
  return {{stream(s), floats(D, 0.1, 1), floats(D), floats(D), floats(D, 0.1, 1)},
          [dtype = s.dtype](Context& c, const Tensors& in) {
            c.training = true;
            return ops::batch_norm(c, in[0], in[1], in[2], in[3].detach(), in[4].detach(), 1e-5f,
                                   dtype);
          }};
}

OpCase pool_case(const OpSizes& s) {
  return {{rows(s, width(s))},
          [](Context& c, const Tensors& in) { return ops::pool_mean(c, in[0], nullptr); }};
}

OpCase positions_case(const OpSizes& s) {
  return {{stream(s), matrix(s, {s.L, width(s)})},
          [](Context& c, const Tensors& in) { return ops::add_positions(c, in[0], in[1]); }};
}

OpCase class_token_case(const OpSizes& s) {
  return {{stream(s), floats({width(s)}), floats({s.L + 1, width(s)})},
          [at = s.L / 2](Context& c, const Tensors& in) {
            return ops::class_token(c, in[0], in[1], in[2], at);
          }};
}

// Images as Vision Mamba reads them: L counts nothing here.
OpCase patches_case(const OpSizes& s) {
  constexpr int64_t kImage = 224, kPatch = 16, kPatches = (kImage / kPatch) * (kImage / kPatch);
  return {{OpInput{{s.B, 3, kImage, kImage}, DType::f32}},
          [](Context& c, const Tensors& in) { return ops::patches(c, in[0], kPatch, kPatch); },
          {{"L", kPatches}, {"D", 3 * kPatch * kPatch}},
          OpPasses::forward};
}

OpCase squared_error_case(const OpSizes& s) {
  return {{stream(s), stream(s)},
          [](Context& c, const Tensors& in) {
            return ops::squared_error(c, in[0], in[1].detach(), 1.0f).loss;
          },
          OrderedJson::object(),
          OpPasses::forward_with_grads};
}

}  // namespace

std::map<std::string, MakeOpCase> stream_op_cases() {
  return {{"add", add_case},
          {"batch_norm", batch_norm_case},
          {"class_token", class_token_case},
          {"concat", concat_case},
          {"drop_path", drop_path_case},
          {"dropout", dropout_case},
          {"patches", patches_case},
          {"pool", pool_case},
          {"positions", positions_case},
          {"scale", scale_case},
          {"squared_error", squared_error_case}};
}

}  // namespace krait::cli
