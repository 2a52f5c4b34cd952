#include "krait/cli/self_check.h"

#include "krait/base/clock.h"
#include "krait/cli/command.h"
#include "krait/cli/self_check_probe.h"
#include "krait/ops/adamw/adamw.h"
#include "krait/ops/adamw/reference.h"
#include "krait/ops/attention/attention.h"
#include "krait/ops/attention/reference.h"
#include "krait/ops/batch_norm/batch_norm.h"
#include "krait/ops/batch_norm/reference.h"
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/conv1d_causal/reference.h"
#include "krait/ops/cross_entropy/cross_entropy.h"
#include "krait/ops/cross_entropy/reference.h"
#include "krait/ops/embedding/embedding.h"
#include "krait/ops/embedding/reference.h"
#include "krait/ops/gate/gate.h"
#include "krait/ops/gate/reference.h"
#include "krait/ops/gated_norm/gated_norm.h"
#include "krait/ops/gated_norm/reference.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/linear/reference.h"
#include "krait/ops/long_conv/long_conv.h"
#include "krait/ops/long_conv/reference.h"
#include "krait/ops/mamba3_scan/mamba3_scan.h"
#include "krait/ops/mamba3_scan/reference.h"
#include "krait/ops/norm/norm.h"
#include "krait/ops/norm/reference.h"
#include "krait/ops/rotary/reference.h"
#include "krait/ops/rotary/rotary.h"
#include "krait/ops/s4_kernel/reference.h"
#include "krait/ops/selective_scan/reference.h"
#include "krait/ops/selective_scan/selective_scan.h"
#include "krait/ops/ssd/reference.h"
#include "krait/ops/ssd/ssd.h"

namespace krait::cli {
namespace {

// Sizes are odd where the op allows it: ends of vectors, tiles and chunks are in every check.
constexpr int64_t B = 2, L = 131, E = 67, N = 16;

// The T of an Inputs<T>.
template <class In>
using Of = typename std::decay_t<In>::value_type::value_type;

std::vector<int32_t> some_ids(int64_t n, int64_t below) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(below));
  return ids;
}

void check_linear(Probe& p) {
  const Tensor x = p.values({B, L, 97}), w = p.weights({E, 97}), b = p.floats({E});
  p.check(
      {x, w, b}, [&](Context& c) { return ops::linear(c, x, w, b, p.dtype()); },
      [](const auto& in) {
        return ops::reference::linear(in[0], in[1], in[2], {}, B * L, E, int64_t{97});
      });
}

void check_embedding(Probe& p) {
  const std::vector<int32_t> ids = some_ids(B * L, 50);
  const Tensor w = p.weights({50, E}), tokens = p.indices({B, L}, ids);
  p.check(
      {w}, [&](Context& c) { return ops::embedding(c, tokens, w); },
      [&](const auto& in) { return ops::embedding_reference(E, ids, in[0]); });
}

template <ops::NormKind kind>
void check_norm(Probe& p) {
  const Tensor x = p.values({B, L, E}), w = p.floats({E}, 1), b = p.floats({E});
  p.check(
      {x, w, b}, [&](Context& c) { return ops::norm(c, kind, x, w, b, 1e-5f, p.dtype()).y; },
      [](const auto& in) {
        return ops::norm_reference(kind == ops::NormKind::layer, E, 1e-5f, in[0], in[1], in[2]);
      });
}

void check_gated_norm(Probe& p) {
  ops::GatedNormInputs a;
  a.x = p.values({B, L, 96}), a.z = p.values({B, L, 96}), a.w = p.floats({96}, 1);
  a.groups = 2;
  p.check(
      {a.x, a.z, a.w}, [&](Context& c) { return ops::gated_norm(c, a); },
      [&](const auto& in) {
        return ops::gated_norm_reference(int64_t{96}, int64_t{2}, true, double{a.eps}, in[0], in[1],
                                         in[2], {});
      });
}

void check_gate(Probe& p) {
  const Tensor g = p.values({B, L, E}), u = p.values({B, L, E});
  p.check(
      {g, u}, [&](Context& c) { return ops::gate(c, ops::Gate::silu, g, u); },
      [](const auto& in) {
        auto y = in[1];
        for (size_t i = 0; i < y.size(); ++i)
          y[i] *= ops::gate_reference(ops::Gate::silu, in[0][i]);
        return y;
      });
}

void check_conv(Probe& p) {
  const Tensor x = p.values({B, L, E}), k = p.floats({E, 4}), b = p.floats({E});
  p.check(
      {x, k, b}, [&](Context& c) { return ops::conv1d_causal(c, x, k, b, true).y; },
      [](const auto& in) {
        std::vector<ops::ConvSequence> rows;
        for (int64_t i = 0; i < B; ++i) rows.push_back({i * L, (i + 1) * L});
        std::vector<Of<decltype(in)>> none;
        return ops::conv1d_causal_reference(E, int64_t{4}, int64_t{3}, true, rows, in[0], in[1],
                                            in[2], {}, none);
      });
}

template <class R>
void whole_rows(R& r) {
  r.tokens = B * L;
  for (int64_t i = 0; i <= B; ++i) r.begin.push_back(i * L);
  r.row_in = r.row_out = std::vector<int64_t>(B, -1);
}

void check_scan(Probe& p) {
  ops::ScanInputs a;
  a.u = p.values({B, L, E}), a.dt = p.values({B, L, E}), a.z = p.values({B, L, E});
  a.A = p.floats({E, N}, 0.5, 0.5), a.D = p.floats({E}), a.dt_bias = p.floats({E}, -1);
  a.B = p.floats({B, L, N}), a.C = p.floats({B, L, N});
  a.a_is_log = true;
  p.check(
      {a.u, a.dt, a.z, a.A, a.D, a.dt_bias, a.B, a.C},
      [&](Context& c) { return ops::selective_scan(c, a).y; },
      [](const auto& in) {
        ops::ScanReference<Of<decltype(in)>> r;
        whole_rows(r);
        r.E = E, r.N = N, r.a_is_log = true;
        r.u = in[0], r.dt = in[1], r.z = in[2], r.A = in[3], r.D = in[4], r.dt_bias = in[5];
        r.B = in[6], r.C = in[7];
        return r.forward().y;
      });
}

void check_ssd(Probe& p) {
  constexpr int64_t H = 3, P = 24;
  ops::SsdInputs a;
  a.x = p.values({B, L, H * P}), a.dt = p.values({B, L, H}), a.A = p.floats({H}, 0.5, 0.5);
  a.B = p.values({B, L, N}), a.C = p.values({B, L, N});
  a.D = p.floats({H}), a.dt_bias = p.floats({H}, -1);
  a.a_is_log = true;
  p.check(
      {a.x, a.dt, a.A, a.B, a.C, a.D, a.dt_bias}, [&](Context& c) { return ops::ssd(c, a).y; },
      [](const auto& in) {
        ops::SsdReference<Of<decltype(in)>> r;
        whole_rows(r);
        r.H = H, r.P = P, r.N = N, r.a_is_log = true;
        r.x = in[0], r.dt = in[1], r.A = in[2], r.B = in[3], r.C = in[4], r.D = in[5];
        r.dt_bias = in[6];
        return r.forward().y;
      });
}

void check_mamba3(Probe& p) {
  constexpr int64_t H = 3, P = 8, T = 5;
  ops::Mamba3Inputs a;
  a.x = p.values({B, L, H * P}), a.z = p.values({B, L, H * P});
  a.B = p.values({B, L, 1, 1, N}), a.C = p.values({B, L, 1, 1, N});
  a.B_bias = p.floats({H, 1, N}), a.C_bias = p.floats({H, 1, N});
  a.dt = p.floats({B, L, H}, 0.3, 0.05), a.adt = p.floats({B, L, H}, -0.2, 0.05);
  a.trap = p.floats({B, L, H}), a.angle = p.floats({B, L, T}), a.D = p.floats({H});
  p.check(
      {a.x, a.z, a.B, a.C, a.B_bias, a.C_bias, a.dt, a.adt, a.trap, a.angle, a.D},
      [&](Context& c) { return ops::mamba3_scan(c, a).y; },
      [](const auto& in) {
        ops::Mamba3Reference<Of<decltype(in)>> r;
        whole_rows(r);
        r.H = H, r.P = P, r.N = N, r.angles = T;
        r.x = in[0], r.z = in[1], r.B = in[2], r.C = in[3], r.B_bias = in[4], r.C_bias = in[5];
        r.dt = in[6], r.adt = in[7], r.trap = in[8], r.angle = in[9], r.D = in[10];
        return r.forward().y;
      });
}

void check_s4_kernel(Probe& p) {
  const ops::S4Case k{.H = 6, .S = 2, .N = 5, .L = L};
  ops::S4Params s;
  s.inv_dt = p.floats({k.H}, -3, 0.5);
  s.A_real = p.floats({k.S, k.N}, -0.7, 0.3), s.A_imag = p.floats({k.S, k.N}, 4, 2);
  s.B = p.floats({1, k.S, k.N, 2}), s.C = p.floats({1, k.H, k.N, 2});
  p.check(
      {s.inv_dt, s.A_real, s.A_imag, s.B, s.C},
      [&](Context& c) { return ops::s4_kernel(c, s, k.options, L); },
      [&](const auto& in) {
        ops::S4Values<Of<decltype(in)>> v;
        v.inv_dt = in[0], v.A_real = in[1], v.A_imag = in[2], v.B = in[3], v.C = in[4];
        return ops::s4_kernel_reference(k, v);
      });
}

void check_long_conv(Probe& p) {
  const Tensor u = p.values({B, L, E}), K = p.floats({1, E, L}), D = p.floats({E});
  p.check(
      {u, K, D}, [&](Context& c) { return ops::long_conv(c, u, K, D); },
      [](const auto& in) {
        return ops::long_conv_reference(E, L, int64_t{1}, {{0, L}, {L, 2 * L}}, in[0], in[1],
                                        in[2]);
      });
}

void check_batch_norm(Probe& p) {
  p.context().training = true;
  const Tensor x = p.floats({B, L, E}), w = p.floats({E}, 1), b = p.floats({E});
  const std::vector<double> zeros(static_cast<size_t>(E));
  const Tensor mean = p.constant({E}, DType::f32, zeros), var = p.constant({E}, DType::f32, zeros);
  p.check(
      {x, w, b},
      [&](Context& c) { return ops::batch_norm(c, x, w, b, mean, var, 1e-5f, p.dtype()); },
      [](const auto& in) {
        std::vector<Of<decltype(in)>> means, vars;
        return ops::batch_norm_reference(E, double{1e-5f}, in[0], in[1], in[2], means, vars);
      });
}

void check_attention(Probe& p) {
  constexpr int64_t H = 4, Hkv = 2, P = 32;
  ops::AttentionInputs a;
  a.q = p.values({B, L, H, P}), a.k = p.values({B, L, Hkv, P}), a.v = p.values({B, L, Hkv, P});
  a.scale = 0.17f;
  p.check(
      {a.q, a.k, a.v}, [&](Context& c) { return ops::attention(c, a).y; },
      [&](const auto& in) {
        ops::AttentionReference<Of<decltype(in)>> r;
        whole_rows(r);
        r.H = H, r.Hkv = Hkv, r.P = P, r.scale = double{a.scale};
        r.q = in[0], r.k = in[1], r.v = in[2];
        return r.forward().y;
      });
}

void check_rotary(Probe& p) {
  constexpr int64_t H = 3, P = 20;
  const ops::Rotation turn{8};
  const Tensor x = p.values({B, L, H, P});
  p.check(
      {x}, [&](Context& c) { return ops::rotary(c, x, turn); },
      [&](const auto& in) {
        auto y = in[0];
        for (int64_t head = 0; head < B * L * H; ++head) {
          const auto at = y.begin() + head * P;
          const auto turned =
              ops::rotary_reference(std::vector<Of<decltype(in)>>(at, at + P), turn, head / H % L);
          std::copy(turned.begin(), turned.end(), at);
        }
        return y;
      });
}

void check_cross_entropy(Probe& p) {
  constexpr int64_t V = 301;
  std::vector<int32_t> targets = some_ids(B * L, V);
  targets[3] = -1;
  const Tensor h = p.values({B * L, E}), w = p.weights({V, E}), t = p.indices({B * L}, targets);
  p.check_loss(
      {h, w}, [&](Context& c) { return ops::linear_cross_entropy(c, h, w, t, 0.125f).loss; },
      [&](const auto& in) {
        Of<decltype(in)> sum = 0;
        for (const auto& nll : ops::reference::cross_entropy(in[0], in[1], targets, V, E))
          sum += nll;
        return std::vector<Of<decltype(in)>>{sum * Of<decltype(in)>(0.125f)};
      });
}

void check_adamw(Probe& p) {
  const Shape s = {1025};
  const Tensor grad = p.floats(s).detach(), m = p.floats(s).detach();
  const Tensor v = p.floats(s, 3, 0.1).detach(), value = p.floats(s).detach();
  constexpr float lr = 0.01f, bias1 = 0.1f, bias2 = 0.05f, clip = 0.5f;
  std::vector<double> step(ops::kStepScalars);
  step[ops::kLearningRate] = lr;
  step[ops::kBias1] = bias1;
  step[ops::kBias2] = bias2;
  step[ops::kClip] = clip;
  const Tensor scalars = p.constant({ops::kStepScalars}, DType::f32, step);
  const auto expected = [&](auto zero) {
    using T = decltype(zero);
    const auto in = [&](const Tensor& t) {
      const std::vector<double> d = p.read(t);
      return std::vector<T>(d.begin(), d.end());
    };
    ops::reference::AdamwState<T> state{in(value), in(m), in(v)};
    ops::reference::adamw<T>(state, in(grad), clip, lr, 0.9f, 0.95f, 1e-8f, 0.1f);
    return state.value;
  };
  const std::vector<double> exact = expected(double{});
  const std::vector<float> plain = expected(float{});
  Context& c = p.context();
  if (p.dtype() == DType::f32) {
    ops::adamw(c, {{value, {}, grad, m, v, 0.1f}}, {}, scalars);
    return p.compare("a step", p.read(value), exact, plain, DType::f32);
  }
  const Tensor rounded = c.alloc(s, DType::bf16), low = c.alloc(s, DType::bf16);
  ops::split(c, value, rounded, low, v);
  ops::adamw(c, {{rounded, low, grad, m, v, 0.1f}}, {}, scalars);
  synchronize(c.device, c.stream);
  std::vector<std::byte> buffers[3];
  std::vector<float> numbers(static_cast<size_t>(s.numel()));
  ops::join(on_host(rounded, buffers[0]), on_host(low, buffers[1]), on_host(v, buffers[2]),
            Tensor(numbers.data(), DType::f32, s));
  p.compare("a step", {numbers.begin(), numbers.end()}, exact, plain, DType::f32);
}

struct Check {
  const char* op;
  void (*run)(Probe&);
};
constexpr Check kChecks[] = {
    {"linear", check_linear},
    {"embedding", check_embedding},
    {"rms_norm", check_norm<ops::NormKind::rms>},
    {"layer_norm", check_norm<ops::NormKind::layer>},
    {"batch_norm", check_batch_norm},
    {"gated_norm", check_gated_norm},
    {"gate", check_gate},
    {"conv1d_causal", check_conv},
    {"selective_scan", check_scan},
    {"ssd", check_ssd},
    {"mamba3_scan", check_mamba3},
    {"s4_kernel", check_s4_kernel},
    {"long_conv", check_long_conv},
    {"attention", check_attention},
    {"rotary", check_rotary},
    {"linear_cross_entropy", check_cross_entropy},
    {"adamw", check_adamw},
};

// True where the op is within its bounds.
bool report(const Check& check, Device device, DType dtype) {
  const Clock::time_point start = Clock::now();
  std::string verdict;
  bool good = false;
  try {
    Probe probe(device, dtype);
    check.run(probe);
    good = probe.worst() <= 1;
    verdict = fmt::format("{} {:5.2f} of the bound ({})", good ? "ok    " : "WRONG ", probe.worst(),
                          probe.where());
  } catch (const std::exception& e) {
    verdict = fmt::format("FAILED {}", e.what());
  }
  print_line("  {:<22}{:<10}{}  {:.2f} s", check.op, name_of(dtype), verdict, seconds_since(start));
  flush_output();
  return good;
}

}  // namespace

int selftest() {
  std::string reason;
  std::vector<DeviceInfo> devices = {describe(Device{})};
  for (const DeviceInfo& d : cuda_devices(&reason)) devices.push_back(d);
  int wrong = 0, checks = 0;
  for (const DeviceInfo& d : devices) {
    print_line("{}", d.name);
    for (const Check& check : kChecks)
      for (const DType dtype : {DType::f32, DType::bf16}) {
        check_interrupt();
        ++checks;
        wrong += report(check, d.device, dtype) ? 0 : 1;
      }
  }
  if (devices.size() == 1) print_line("no GPU: {}", reason);
  print_line("{} of {} checks passed{}", checks - wrong, checks,
             wrong ? ": do not trust this machine's results" : "");
  return wrong ? kFailed : kDone;
}

}  // namespace krait::cli
