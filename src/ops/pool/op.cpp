// Bound by memory, so plain loops do.
#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/pool/cuda.h"
#include "krait/ops/pool/pool.h"
#include "krait/ops/sequences.h"
#include "krait/tensor/device.h"
#include "krait/tensor/memory.h"

namespace krait::ops {
namespace {

void check(const char* op, const Tensor& x, bool only_float32) {
  require((x.dtype == DType::f32 || (x.dtype == DType::bf16 && !only_float32)) && x.contiguous() &&
              x.rank() == 3,
          "[{}] x: expected contiguous {} (B, L, D), got {} {}", op,
          only_float32 ? "float32" : "float32 or bfloat16", name_of(x.dtype), x.shape);
}

// The sequences, on the CPU as ranges of tokens: the packing's arrays may be gone when backward comes.
struct Pooled {
  cuda::PooledRows rows;
  std::vector<Sequence> list;

  Pooled(const Context& c, const char* op, const Tensor& x, const Packing* packing) {
    const Sequences all(c, op, x.size(0), x.size(1), packing, {}, {});
    rows = {all.size(), x.size(1), x.size(2)};
    if (c.planning()) return;
    if (c.device.type == Device::cuda) {
      if (packing) rows.begin = packing->begin.as<int64_t>();
      return;
    }
    for (int64_t s = 0; s < all.size(); ++s) {
      list.push_back(all[s]);
      require(all[s].tokens > 0, "[{}] sequence {} has no tokens", op, s);
    }
  }
};

// y[s] = Σ weight x[t] over the tokens that count.
struct Part {
  int64_t begin, tokens;
  float weight;
};

Part part_of(const Sequence& s, bool mean) {
  if (mean) return {s.begin, s.tokens, 1 / static_cast<float>(s.tokens)};
  return {s.begin + s.tokens - 1, 1, 1};
}

template <class T>
void run_forward(const std::vector<Sequence>& sequences, bool mean, const T* x, T* y, int64_t D) {
  parallel_for(static_cast<int64_t>(sequences.size()), [&](int64_t s) {
    const Part p = part_of(sequences[static_cast<size_t>(s)], mean);
    std::vector<float> sum(static_cast<size_t>(D), 0.0f);
    for (int64_t t = p.begin; t < p.begin + p.tokens; ++t)
      for (int64_t d = 0; d < D; ++d)
        sum[static_cast<size_t>(d)] += static_cast<float>(x[t * D + d]);
    for (int64_t d = 0; d < D; ++d) y[s * D + d] = T(p.weight * sum[static_cast<size_t>(d)]);
  });
}

template <class T>
void run_backward(const std::vector<Sequence>& sequences, bool mean, const T* dy, T* dx,
                  int64_t D) {
  parallel_for(static_cast<int64_t>(sequences.size()), [&](int64_t s) {
    const Part p = part_of(sequences[static_cast<size_t>(s)], mean);
    for (int64_t t = p.begin; t < p.begin + p.tokens; ++t)
      for (int64_t d = 0; d < D; ++d)
        dx[t * D + d] =
            T(static_cast<float>(dx[t * D + d]) + p.weight * static_cast<float>(dy[s * D + d]));
  });
}

void run_forward(Context& c, const Pooled& of, bool mean, const Tensor& x, const Tensor& y) {
  const bool bf = x.dtype == DType::bf16;
  if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(cuda::pool_forward(of.rows, mean, x.data, bf, y.data, c.stream));
    return;
  }
  bf ? run_forward(of.list, mean, x.as<bf16>(), y.as<bf16>(), of.rows.D)
     : run_forward(of.list, mean, x.as<float>(), y.as<float>(), of.rows.D);
}

// dx += ...
void run_backward(Context& c, const Pooled& of, bool mean, const Tensor& dy, const Tensor& dx) {
  const bool bf = dy.dtype == DType::bf16;
  if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(cuda::pool_backward(of.rows, mean, dy.data, bf, dx.data, c.stream));
    return;
  }
  bf ? run_backward(of.list, mean, dy.as<bf16>(), dx.as<bf16>(), of.rows.D)
     : run_backward(of.list, mean, dy.as<float>(), dx.as<float>(), of.rows.D);
}

Tensor pool(Context& c, const char* op, const Tensor& x, const Packing* packing, bool mean) {
  check(op, x, false);
  const Pooled of(c, op, x, packing);
  Tensor y = c.alloc({of.rows.n, of.rows.D}, x.dtype);
  c.cost(op, static_cast<double>((mean ? x.bytes() : y.bytes()) + y.bytes()),
         static_cast<double>(mean ? x.numel() : 0));
  if (!c.planning()) run_forward(c, of, mean, x, y);
  if (c.tape && needs_grad({x})) {
    c.tape->watch(y);
    c.tape->record([=](Context& back) {
      const Tensor dy = back.tape->grad(y);
      if (!dy) return;
      const GradTarget dx = back.tape->grad_into(back, x);
      back.cost("pool.backward", 2.0 * static_cast<double>(x.bytes()),
                static_cast<double>(x.numel()));
      if (back.planning()) return;
      if (!dx.add) fill(back, dx.grad, 0.0f);
      run_backward(back, of, mean, dy, dx.grad);
    });
  }
  return y;
}

}  // namespace

Tensor pool_last(Context& c, const Tensor& x, const Packing* packing) {
  return pool(c, "pool_last", x, packing, false);
}

Tensor pool_mean(Context& c, const Tensor& x, const Packing* packing) {
  return pool(c, "pool_mean", x, packing, true);
}

Tensor put_last(Context& c, const Tensor& x, const Tensor& token, const Packing* packing) {
  check("put_last", x, true);
  const int64_t D = x.size(2);
  require(token.dtype == DType::f32 && token.contiguous() && token.numel() == D,
          "[put_last] token: expected contiguous float32 ({},), got {} {}", D, name_of(token.dtype),
          token.shape);
  const Pooled of(c, "put_last", x, packing);
  Tensor y = c.alloc(x.shape, DType::f32);
  c.cost("put_last", 2.0 * static_cast<double>(y.bytes()), 0);
  const bool gpu = c.device.type == Device::cuda;
  if (!c.planning()) {
    copy(c, x.detach(), y);
    if (gpu)
      KRAIT_WITH_CUDA(cuda::put_last_forward(of.rows, token.as<float>(), y.as<float>(), c.stream));
    for (const Sequence& s : of.list)
      std::copy_n(token.as<float>(), D, y.as<float>() + (s.begin + s.tokens - 1) * D);
  }
  if (c.tape && needs_grad({x, token})) {
    c.tape->watch(y);
    c.tape->record([=](Context& back) {
      const Tensor dy = back.tape->grad(y);
      if (!dy) return;
      const GradTarget dx = back.tape->grad_into(back, x),
                       dtoken = back.tape->grad_into(back, token);
      back.cost("put_last.backward", 2.0 * static_cast<double>(y.bytes()),
                static_cast<double>(y.numel()));
      if (back.planning()) return;
      if (gpu) {
        const auto to = [](const GradTarget& g) { return g.grad ? g.grad.as<float>() : nullptr; };
        KRAIT_WITH_CUDA(cuda::put_last_backward(of.rows, dy.as<float>(), to(dx), dx.add, to(dtoken),
                                                dtoken.add, back.stream));
        return;
      }
      const float* const from = dy.as<float>();
      const auto each_row = [&](const Sequence& s) {  // dx of the tokens but the last
        float* const to = dx.grad.as<float>();
        for (int64_t i = s.begin * D; i < (s.begin + s.tokens) * D; ++i) {
          const float g = i < (s.begin + s.tokens - 1) * D ? from[i] : 0.0f;
          to[i] = dx.add ? to[i] + g : g;
        }
      };
      for (const Sequence& s : of.list)
        if (dx.grad) each_row(s);
      for (int64_t d = 0; d < D && dtoken.grad; ++d) {
        float sum = 0;
        for (const Sequence& s : of.list) sum += from[(s.begin + s.tokens - 1) * D + d];
        float& to = dtoken.grad.as<float>()[d];
        to = dtoken.add ? to + sum : sum;
      }
    });
  }
  return y;
}

}  // namespace krait::ops
