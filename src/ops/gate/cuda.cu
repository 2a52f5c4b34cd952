// A thread has a run of neighbouring elements; bound by memory.
#include "krait/ops/gate/cuda.h"

#include <algorithm>
#include <type_traits>

#include "krait/ops/gate/kind.h"
#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

using ops::Gate;

constexpr int kThreads = 256;

// sigmoid(x) and 1 - sigmoid(x) without cancellation, to what rounding to T leaves of them.
template <class T>
__device__ inline void sigmoids(float x, float& of_x, float& rest) {
  constexpr bool kFast = !std::is_same_v<T, float>;
  const float e = exp_of_negative<kFast>(-fabsf(x)), large = reciprocal<kFast>(1.0f + e);
  of_x = x >= 0 ? large : e * large;
  rest = x >= 0 ? e * large : large;
}

template <Gate kind, class T>
__device__ inline void at(float x, float& value, float& slope) {
  float s, rest;
  if constexpr (kind == Gate::silu) {
    sigmoids<T>(x, s, rest);
    value = x * s;
    slope = s * fmaf(x, rest, 1.0f);
  } else if constexpr (kind == Gate::sigmoid) {
    sigmoids<T>(x, value, rest);
    slope = value * rest;
  } else if constexpr (kind == Gate::gelu) {
    const float below = normcdff(x);
    value = x * below;
    slope = fmaf(x * 0.398942280401432678f, expf(-0.5f * x * x), below);
  } else if constexpr (kind == Gate::gelu_tanh) {
    constexpr float kTwoB = 1.59576912160573071f,
                    kC = 0.044715f;  // (1 + tanh(a)) / 2 = sigmoid(2a)
    sigmoids<T>(kTwoB * x * fmaf(kC, x * x, 1.0f), s, rest);
    value = x * s;
    slope = s * fmaf(x * rest, kTwoB * fmaf(3 * kC, x * x, 1.0f), 1.0f);
  } else {
    const float r = fmaxf(x, 0.0f);
    value = kind == Gate::relu ? r : r * r;
    slope = kind == Gate::relu ? (x > 0 ? 1.0f : 0.0f) : 2 * r;
  }
}

// Calls f(row, column) for every run of V elements.
template <int V, class F>
__device__ inline void for_runs(int64_t rows, int64_t columns, const F& f) {
  const int64_t of_row = columns / V, n = rows * of_row, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step)
    f(i / of_row, i % of_row * V);
}

template <Gate kind, class T, int V>
__global__ void forward_kernel(const GateProblem p, int64_t rows) {
  let_next_start();
  wait_for_previous();
  for_runs<V>(rows, p.F, [&](int64_t row, int64_t i) {
    float g[V], u[V], slope;
    load_past<V>(static_cast<const T*>(p.g) + row * p.g_row + i, g);
    if (p.u) load_past<V>(static_cast<const T*>(p.u) + row * p.u_row + i, u);
    for (int v = 0; v < V; ++v) {
      at<kind, T>(g[v], g[v], slope);
      if (p.u) g[v] *= u[v];
    }
    store<V>(static_cast<T*>(p.y) + row * p.F + i, g);
  });
}

template <Gate kind, class T, int V>
__global__ void backward_kernel(const GateProblem p, int64_t rows) {
  for_runs<V>(rows, p.F, [&](int64_t row, int64_t i) {
    float g[V], u[V], dy[V], dg[V], du[V];
    load<V>(static_cast<const T*>(p.g) + row * p.g_row + i, g);
    if (p.u) load<V>(static_cast<const T*>(p.u) + row * p.u_row + i, u);
    load<V>(static_cast<const T*>(p.dy) + row * p.F + i, dy);
    for (int v = 0; v < V; ++v) {
      float value, slope;
      at<kind, T>(g[v], value, slope);
      du[v] = value * dy[v];
      dg[v] = slope * dy[v] * (p.u ? u[v] : 1.0f);
    }
    if (p.du) store_or_add<V>(static_cast<T*>(p.du) + row * p.u_row + i, du, p.add_u);
    if (p.dg) store_or_add<V>(static_cast<T*>(p.dg) + row * p.g_row + i, dg, p.add_g);
  });
}

bool in_runs_of(const GateProblem& p, int64_t V) {
  const int64_t bytes = p.bf16 ? 2 : 4;
  return p.F % V == 0 && in_runs(p.g, p.g_row, bytes, V) && in_runs(p.u, p.u_row, bytes, V) &&
         in_runs(p.y, 0, bytes, V) && in_runs(p.dy, 0, bytes, V) && in_runs(p.dg, 0, bytes, V) &&
         in_runs(p.du, 0, bytes, V);
}

// Calls f with the kind as an integral constant, a value of the type and the length of a run: 16 bytes or an element.
template <class F>
void with_kernel(const GateProblem& p, const F& f) {
  const auto with_run = [&](auto kind, auto x) {
    constexpr int V = 16 / sizeof(x);
    in_runs_of(p, V) ? f(kind, x, std::integral_constant<int, V>())
                     : f(kind, x, std::integral_constant<int, 1>());
  };
  const auto with_type = [&](auto kind) {
    p.bf16 ? with_run(kind, __nv_bfloat16()) : with_run(kind, 0.0f);
  };
  switch (static_cast<Gate>(p.kind)) {
    case Gate::silu: return with_type(std::integral_constant<Gate, Gate::silu>());
    case Gate::sigmoid: return with_type(std::integral_constant<Gate, Gate::sigmoid>());
    case Gate::gelu: return with_type(std::integral_constant<Gate, Gate::gelu>());
    case Gate::gelu_tanh: return with_type(std::integral_constant<Gate, Gate::gelu_tanh>());
    case Gate::relu: return with_type(std::integral_constant<Gate, Gate::relu>());
    case Gate::relu2: return with_type(std::integral_constant<Gate, Gate::relu2>());
  }
}

unsigned blocks_for(int64_t elements, int V) {
  return static_cast<unsigned>(
      std::min<int64_t>(ceil_div(elements, int64_t{kThreads} * V), int64_t{1} << 20));
}

}  // namespace

void gate_forward(const GateProblem& p, int64_t rows, void* stream) {
  if (rows * p.F == 0) return;
  with_kernel(p, [&](auto kind, auto x, auto run) {
    constexpr int V = decltype(run)::value;
    launch_dependent("gate", forward_kernel<decltype(kind)::value, decltype(x), V>,
                     dim3(blocks_for(rows * p.F, V)), kThreads, 0, 1, stream, p, rows);
  });
}

void gate_backward(const GateProblem& p, int64_t rows, void* stream) {
  if (rows * p.F == 0) return;
  with_kernel(p, [&](auto kind, auto x, auto run) {
    constexpr int V = decltype(run)::value;
    const auto kernel = backward_kernel<decltype(kind)::value, decltype(x), V>;
    kernel<<<blocks_for(rows * p.F, V), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p, rows);
  });
  check_launch("gate backward");
}

}  // namespace krait::cuda
