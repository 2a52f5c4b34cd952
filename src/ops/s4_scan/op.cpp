#include <algorithm>

#include "krait/autograd/segment.h"
#include "krait/base/threads.h"
#include "krait/ops/s4_scan/backward.h"
#include "krait/ops/s4_scan/kernels.h"
#include "krait/ops/s4_scan/s4_scan.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

constexpr int64_t kHeads = 16;  // of one job: their inputs share cache lines

void check_state(const char* name, const Tensor& state, int64_t H, int64_t N, int64_t rows) {
  if (!state) return;
  require(state.dtype == DType::f32 && state.contiguous() && state.rank() == 4 &&
              state.size(1) == H && state.size(2) == N && state.size(3) == 2 &&
              (rows < 0 || state.size(0) == rows),
          "[s4_scan] {}: expected contiguous float32 ({}, H={}, N={}, 2), got {} {}", name,
          rows < 0 ? "rows" : std::to_string(rows), H, N, name_of(state.dtype), state.shape);
}

void run_on_cpu(const Tensor& u, const S4Steps& steps, const Tensor& D, const Packing* packing,
                const Tensor& state_in, const Tensor& state_out, const Tensor& y) {
  const int64_t L = u.size(1), H = steps.H, N = steps.N, row = steps.row;
  const int64_t sequences = packing ? packing->n : u.size(0), blocks = (H + kHeads - 1) / kHeads;
  const S4ScanKernels& kernels = KRAIT_PICK_ISA(s4_scan_kernels);
  const auto bytes = static_cast<int64_t>(size_of(u.dtype));
  parallel_for(sequences * blocks, [&](int64_t job) {
    const int64_t s = job / blocks, h0 = job % blocks * kHeads;
    const int64_t begin = packing ? packing->begin.as<int64_t>()[s] : s * L;
    const int64_t end = packing ? packing->begin.as<int64_t>()[s + 1] : begin + L;
    const int64_t in = packing ? packing->state_in.as<int32_t>()[s] : s;
    const int64_t out = packing ? packing->state_out.as<int32_t>()[s] : s;
    double state[2 * kS4MaxRow];
    for (int64_t h = h0; h < std::min(H, h0 + kHeads); ++h) {
      const auto state_row = [&](const Tensor& t, int64_t r) {
        return t && r >= 0 ? t.as<float>() + (r * H + h) * N * 2 : nullptr;
      };
      s4_load_state(state_row(state_in, in), N, row, state);
      S4Run run;
      run.dplr = steps.dplr;
      run.row = row;
      run.system = steps.system.data() + h * steps.rows() * 2 * row;
      run.C = steps.C.data() + h * 2 * row;
      run.D = D.as<float>()[h];
      run.L = end - begin;
      run.u_stride = u.row_stride();
      run.y_stride = H;
      run.bf16 = u.dtype == DType::bf16;
      run.u = static_cast<const std::byte*>(u.data) + (begin * run.u_stride + h) * bytes;
      run.y = static_cast<std::byte*>(y.data) + (begin * H + h) * bytes;
      run.h = state;
      kernels.run(run);
      if (float* to = state_row(state_out, out)) s4_store_state(state, N, row, to);
    }
  });
}

}  // namespace

cuda::S4ScanCall s4_scan_call(const Tensor& u, const S4Steps& steps, const Tensor& D,
                              const Packing* packing, const Tensor& state_in,
                              const Tensor& state_out) {
  require(static_cast<bool>(steps.memory),
          "[s4_scan] steps: expected those of parameters on a GPU");
  const auto* const system = reinterpret_cast<const double*>(steps.memory->data());
  cuda::S4ScanCall q;
  q.dplr = steps.dplr;
  q.H = steps.H;
  q.N = steps.N;
  q.row = steps.row;
  q.system = system;
  q.C = system + steps.system.size();
  q.D = D.as<float>();
  q.sequences = packing ? packing->n : u.size(0);
  q.L = u.size(1);
  if (packing) {
    q.begin = packing->begin.as<int64_t>();
    q.row_in = packing->state_in.as<int32_t>();
    q.row_out = packing->state_out.as<int32_t>();
  }
  q.bf16 = u.dtype == DType::bf16;
  q.u = u.data;
  q.u_stride = u.row_stride();
  q.state_in = state_in ? state_in.as<float>() : nullptr;
  q.state_out = state_out ? state_out.as<float>() : nullptr;
  return q;
}

S4ScanResult s4_scan(Context& c, const Tensor& u, const S4Steps* steps, const Tensor& D,
                     const Packing* packing, const Tensor& state_in, const Tensor& state_out,
                     const S4Learned* learned) {
  require(u.rank() == 3 && u.row_strided() && (u.dtype == DType::f32 || u.dtype == DType::bf16),
          "[s4_scan] u: expected float32 or bfloat16 (B, L, H) with rows at one distance, got {} "
          "{}",
          name_of(u.dtype), u.shape);
  bool recorded = c.tape && needs_grad({u, D, state_in});
  if (c.tape && learned) {
    const S4Params& p = learned->params;
    recorded = needs_grad({p.inv_dt, p.A_real, p.A_imag, p.B, p.C, p.P}) || recorded;
  }
  require(!recorded || learned, "[s4_scan] recorded: expected the parameters of the steps as well");
  const int64_t B = u.size(0), H = u.size(2);
  require(D.dtype == DType::f32 && D.contiguous() && D.numel() == H,
          "[s4_scan] D: expected contiguous float32 (1, {}), got {} {}", H, name_of(D.dtype),
          D.shape);
  const Kept kept(c);
  S4ScanResult result{c.alloc(u.shape, u.dtype), state_out};
  c.cost("s4_scan", 2.0 * static_cast<double>(u.bytes()), 0);
  if (recorded) {
    c.tape->watch(result.y);
    if (state_out) c.tape->watch(result.state);
    c.tape->record([q = S4ScanBackward(*learned, u, D, packing, state_in, result)](Context& b) {
      s4_scan_backward(b, q);
    });
  }
  if (c.planning()) return result;
  require(steps && steps->H == H && steps->channels == 1,
          "[s4_scan] u: expected (B, L, {}) and a model of one direction, got {} and {}",
          steps ? steps->H : 0, u.shape, steps ? steps->channels : 0);
  const int64_t N = steps->N;
  check_state("state_in", state_in, H, N, packing ? -1 : B);
  check_state("state_out", state_out, H, N, packing ? -1 : B);
  c.cost("s4_scan", static_cast<double>(steps->system.size() * sizeof(double)),
         static_cast<double>(u.numel() * N) * (steps->dplr ? 40 : 12));

  if (c.device.type == Device::cuda) {
    cuda::S4ScanCall q = s4_scan_call(u, *steps, D, packing, state_in, state_out);
    q.y = result.y.data;
    KRAIT_WITH_CUDA(cuda::s4_scan(q, c.stream));
    return result;
  }
  run_on_cpu(u, *steps, D, packing, state_in, state_out, result.y);
  return result;
}

}  // namespace krait::ops
