#include "krait/ops/embedding/cuda.h"

#include <algorithm>
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

constexpr int kThreads = 128;

template <class W, int V>
__global__ void gather_kernel(const int32_t* tokens, const W* w, int64_t D, float* y) {
  let_next_start();
  const W* const row = w + int64_t{tokens[blockIdx.x]} * D;
  for (int64_t i = int64_t{threadIdx.x} * V; i < D; i += int64_t{blockDim.x} * V) {
    float run[V];
    load<V>(row + i, run);
    store<V>(y + blockIdx.x * D + i, run);
  }
}

__global__ void places_kernel(int32_t* places, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) places[i] = static_cast<int32_t>(i);
}

template <int V>
__device__ void add_to(float* to, const float (&sum)[V]) {
  float old[V];
  load<V>(to, old);
  for (int v = 0; v < V; ++v) old[v] += sum[v];
  store<V>(to, old);
}

// A block adds up the gradients of its piece of the sorted tokens. A token that lies in this piece alone goes
// into dw; what is shared with the piece before goes into sums[piece, 0], what with the piece after only,
// into sums[piece, 1].
template <int V>
__global__ void pieces_kernel(const EmbeddingBackward b, const int32_t* ids,
                              const int32_t* places) {
  const int64_t piece = blockIdx.x, from = piece * kEmbeddingPiece,
                to = min(b.n, from + kEmbeddingPiece);
  const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * V;
  if (i >= b.D) return;
  float sum[V] = {};
  int64_t begin = from;  // of the run of one token
  for (int64_t at = from; at < to; ++at) {
    float dy[V];
    load<V>(b.dy + int64_t{places[at]} * b.D + i, dy);
    for (int v = 0; v < V; ++v) sum[v] += dy[v];
    const int32_t id = ids[at];
    if (at + 1 < to && ids[at + 1] == id) continue;
    const bool from_before = begin == from && from > 0 && ids[from - 1] == id;
    const bool goes_on = at + 1 == to && to < b.n && ids[to] == id;
    if (from_before || goes_on) {
      store<V>(b.sums + (piece * 2 + (from_before ? 0 : 1)) * b.D + i, sum);
    } else {
      add_to<V>(b.dw + id * b.D + i, sum);
    }
    for (int v = 0; v < V; ++v) sum[v] = 0;
    begin = at + 1;
  }
}

// The tokens that reach over pieces: the block of the piece where one begins adds up its sums in order.
template <int V>
__global__ void borders_kernel(const EmbeddingBackward b, const int32_t* ids) {
  const int64_t piece = blockIdx.x, end = (piece + 1) * kEmbeddingPiece;
  const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * V;
  if (i >= b.D || end >= b.n) return;
  const int32_t id = ids[end];
  const int64_t from = piece * kEmbeddingPiece;
  if (ids[end - 1] != id || (from > 0 && ids[from] == id && ids[from - 1] == id)) return;
  float sum[V], more[V];
  load<V>(b.sums + (piece * 2 + 1) * b.D + i, sum);
  for (int64_t next = piece + 1;; ++next) {
    load<V>(b.sums + next * 2 * b.D + i, more);
    for (int v = 0; v < V; ++v) sum[v] += more[v];
    const int64_t border = (next + 1) * kEmbeddingPiece;
    if (border >= b.n || ids[border - 1] != id || ids[border] != id) break;
  }
  add_to<V>(b.dw + id * b.D + i, sum);
}

cudaError_t sort(void* scratch, size_t& bytes, const EmbeddingBackward& b, cudaStream_t stream) {
  int32_t *const ids = b.sorted, *const places = b.sorted + b.n,
                 *const in_order = b.sorted + 2 * b.n;
  const int bits = std::bit_width(static_cast<uint64_t>(b.V));
  return cub::DeviceRadixSort::SortPairs(scratch, bytes, b.tokens, ids, in_order, places, b.n, 0,
                                         bits, stream);
}

template <int V>
void launch_backward(const EmbeddingBackward& b, cudaStream_t s) {
  const dim3 grid(static_cast<unsigned>(embedding_pieces(b.n)),
                  static_cast<unsigned>(ceil_div(b.D, kThreads * V)));
  pieces_kernel<V><<<grid, kThreads, 0, s>>>(b, b.sorted, b.sorted + b.n);
  borders_kernel<V><<<grid, kThreads, 0, s>>>(b, b.sorted);
}

}  // namespace

void embedding_forward(const int32_t* tokens, int64_t n, const void* w, bool w_bf16, int64_t D,
                       float* y, void* stream) {
  if (n == 0 || D == 0) return;
  const bool fours = D % 4 == 0 && in_runs(w, D, w_bf16 ? 2 : 4, 4) && in_runs(y, D, 4, 4);
  // A decoded token waits for its row: all of it is asked for at once.
  const int64_t warps = ceil_div(fours ? D / 4 : D, 32),
                threads = 32 * std::min<int64_t>(warps, 32);
  const auto launch = [&](auto kernel, auto* table) {
    kernel<<<static_cast<unsigned>(n), static_cast<unsigned>(threads), 0,
             static_cast<cudaStream_t>(stream)>>>(tokens, table, D, y);
  };
  if (w_bf16) {
    const auto* table = static_cast<const __nv_bfloat16*>(w);
    fours ? launch(gather_kernel<__nv_bfloat16, 4>, table)
          : launch(gather_kernel<__nv_bfloat16, 1>, table);
  } else {
    const auto* table = static_cast<const float*>(w);
    fours ? launch(gather_kernel<float, 4>, table) : launch(gather_kernel<float, 1>, table);
  }
  check_launch("embedding");
}

void embedding_sort_bytes(int64_t n, int64_t V, size_t* bytes) {
  sort(nullptr, *bytes, {.n = n, .V = V}, nullptr);
  check_launch("embedding sort");
}

void embedding_backward(const EmbeddingBackward& b, void* stream) {
  if (b.D == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  places_kernel<<<static_cast<unsigned>(ceil_div(b.n, kThreads)), kThreads, 0, s>>>(
      b.sorted + 2 * b.n, b.n);
  size_t bytes = b.sort_bytes;
  sort(b.sort, bytes, b, s);
  check_launch("embedding sort");
  const bool fours = b.D % 4 == 0 && in_runs(b.dy, b.D, 4, 4) && in_runs(b.dw, b.D, 4, 4);
  fours ? launch_backward<4>(b, s) : launch_backward<1>(b, s);
  check_launch("embedding backward");
}

}  // namespace krait::cuda
