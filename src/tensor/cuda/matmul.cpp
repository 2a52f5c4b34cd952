#include "krait/tensor/cuda/matmul.h"

#include <cublasLt.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <tuple>
#include <vector>

#include "krait/tensor/cuda/check.h"
#include "krait/tensor/cuda/counters.h"

namespace krait::cuda {

namespace {

constexpr size_t kWorkspace = size_t{32} << 20;

void check(cublasStatus_t s, const char* what) {
  if (s != CUBLAS_STATUS_SUCCESS) [[unlikely]]
    fail("cuBLASLt: {}: {}", what, cublasLtGetStatusString(s));
}

cudaDataType type_of(DType t) { return t == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

// cuBLASLt thinks in columns. A row-major C (M, N) is a column-major Cᵀ (N, M) = Bᵀ Aᵀ: the factors change
// places. A factor whose row-major form is dense along columns is, seen column-major, transposed already.
struct Factor {
  int64_t rows, cols, step;  // as stored, column-major
  cublasOperation_t op;
};

Factor factor(const Matrix& m) {
  // Where there is one column, its step says nothing; the library wants at least a column's length.
  if (m.col_step == 1) return {m.cols, m.rows, std::max(m.row_step, m.cols), CUBLAS_OP_N};
  return {m.rows, m.cols, std::max(m.col_step, m.rows), CUBLAS_OP_T};
}

int alignment(const void* p) {
  const auto a = reinterpret_cast<uintptr_t>(p);
  return a % 16 == 0 ? 16 : a % 8 == 0 ? 8 : a % 4 == 0 ? 4 : 2;
}

using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, int, int,
                       int, int, bool>;

struct Planned {
  cublasLtMatmulDesc_t op = nullptr;
  cublasLtMatrixLayout_t x = nullptr, y = nullptr, plus = nullptr, d = nullptr;
  cublasLtMatmulAlgo_t algo{};
  size_t workspace = 0;
};

int32_t config(const cublasLtMatmulAlgo_t& a, cublasLtMatmulAlgoConfigAttributes_t what) {
  int32_t value = 0;
  size_t written = 0;
  cublasLtMatmulAlgoConfigGetAttribute(&a, what, &value, sizeof value, &written);
  return value;
}

// A tile of Hopper's kernels, its size in columns of 128. `own`: a warp group has one for itself, else two share it;
// `wide`: it has 128 of the result's columns, else of its rows.
struct Tile {
  int32_t id, columns;
  bool own = false, wide = false;
};
constexpr Tile kTiles[] = {{CUBLASLT_MATMUL_TILE_128x128, 128, true, true},
                           {CUBLASLT_MATMUL_TILE_128x144, 144, true, true},
                           {CUBLASLT_MATMUL_TILE_144x128, 144, true, false},
                           {CUBLASLT_MATMUL_TILE_128x160, 160, true, true},
                           {CUBLASLT_MATMUL_TILE_160x128, 160, true, false},
                           {CUBLASLT_MATMUL_TILE_128x176, 176, true, true},
                           {CUBLASLT_MATMUL_TILE_176x128, 176, true, false},
                           {CUBLASLT_MATMUL_TILE_168x128, 168, true, false},
                           {CUBLASLT_MATMUL_TILE_128x192, 192},
                           {CUBLASLT_MATMUL_TILE_192x128, 192},
                           {CUBLASLT_MATMUL_TILE_128x256, 256},
                           {CUBLASLT_MATMUL_TILE_256x128, 256},
                           {CUBLASLT_MATMUL_TILE_192x192, 288}};

using Proposal = cublasLtMatmulHeuristicResult_t;

// What the library calls a custom option: of a `wide` tile of one group that follow each other along columns or rows.
constexpr int32_t kAlongColumns = 1, kAlongRows = 3;

const Tile* tile_of(const Proposal& p) {
  const int32_t id = config(p.algo, CUBLASLT_ALGO_CONFIG_TILE_ID);
  const auto* const found =
      std::find_if(std::begin(kTiles), std::end(kTiles), [&](const Tile& t) { return t.id == id; });
  return found == std::end(kTiles) ? nullptr : found;
}

// For how long a product keeps the card busy: rounds over it, times the tile and what each takes besides. 0: not known.
double busy(const Proposal& p) {
  const Tile* const t = tile_of(p);
  const bool whole = config(p.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) <= 1;
  return t && whole ? std::ceil(static_cast<double>(p.wavesCount)) * (t->columns + 8) : 0;
}

// The library's first choice is a larger tile that two warp groups share: they multiply together and write together,
// and nothing is multiplied meanwhile. Where sums are short, writing is much of the time: two groups that each have
// a tile and take turns are faster, the more so for float32 results. Of these the one that is busy for the least
// time, and the larger tile of two such; where sums are long unless that is 4% more than of the first choice, which
// there draws more power: a card at its limit of power slows down (K 8512: 743 TFLOP/s instead of 642); and
// where there is little to do but to write, the smallest, column by column. On an H200 the first choices of 46
// shapes of training and prompts took 9.7% longer than the best (up to 59%), these 0.5% (5.3%). Tiles that the
// library does not propose take another 14 to 19% off heads of 50,280 rows and their weights' gradient, and off
// in_proj of mamba2-130m.
const Proposal& best_of(std::span<const Proposal> all, const Matrix& a, const Matrix& c) {
  const Proposal* best = &all[0];
  if (a.dtype != DType::bf16 || a.cols < 96 || std::min(c.rows, c.cols) < 512) return *best;
  const bool long_sums = a.cols > 4096, short_sums = a.cols < 256;
  const double first = busy(all[0]);
  double least = long_sums ? 1.04 * first : std::numeric_limits<double>::infinity();
  int32_t columns = 0;
  for (const Proposal& p : all) {
    const Tile* const t = tile_of(p);
    const double time = busy(p);
    if (time == 0 || !t->own || time > least || (time == least && t->columns <= columns)) continue;
    if (short_sums && (t->columns > 128 || p.wavesCount < 8 ||
                       config(p.algo, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION) != kAlongColumns))
      continue;
    least = time;
    columns = t->columns;
    best = &p;
  }
  return *best;
}

cublasLtMatrixLayout_t layout(DType t, int64_t rows, int64_t cols, int64_t step) {
  cublasLtMatrixLayout_t l = nullptr;
  check(cublasLtMatrixLayoutCreate(&l, type_of(t), static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(cols), step),
        "describing a matrix");
  return l;
}

// One for each device, made at the first product and kept: handle, workspace, plans by shape.
class Library {
 public:
  explicit Library(int device) : workspace_({Device::cuda, device}, kWorkspace), counters_(device) {
    check(cublasLtCreate(&handle_), "starting");
    int generation = 0;
    cuda::check(cudaDeviceGetAttribute(&generation, cudaDevAttrComputeCapabilityMajor, device),
                "asking for a device's generation");
    hopper_ = generation == 9;
  }

  void run(const Matrix& a, const Matrix& b, const Matrix& c, const Epilogue& e, Stream stream) {
    const std::lock_guard lock(mutex_);
    const Matrix& before = e.plus ? *e.plus : c;
    const Planned& p = planned(a, b, c, before, e.bias != nullptr);
    if (e.bias)
      cublasLtMatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &e.bias,
                                     sizeof e.bias);
    const float alpha = 1.0f, beta = e.add || e.plus ? 1.0f : 0.0f;
    // What works in so little has a counter there, no sums.
    const bool counts = p.workspace > 0 && p.workspace <= Counters::kBytes;
    void* const workspace = counts ? counters_.next() : workspace_.data();
    check(cublasLtMatmul(handle_, p.op, &alpha, b.data, p.x, a.data, p.y, &beta, before.data,
                         p.plus, c.data, p.d, &p.algo, workspace, counts ? p.workspace : kWorkspace,
                         static_cast<cudaStream_t>(stream)),
          "multiplying");
  }

  void start_recording() {
    const std::lock_guard lock(mutex_);
    counters_.restart();
  }

  const Counters& counters() const { return counters_; }

 private:
  const Planned& planned(const Matrix& a, const Matrix& b, const Matrix& c, const Matrix& before,
                         bool bias) {
    const Factor x = factor(b), y = factor(a);
    const Key key{c.rows,
                  c.cols,
                  a.cols,
                  x.step,
                  y.step,
                  c.row_step,
                  before.row_step,
                  x.op * 2 + y.op,
                  static_cast<int>(a.dtype) * 16 + static_cast<int>(c.dtype),
                  alignment(a.data),
                  alignment(b.data),
                  alignment(c.data) * 32 + alignment(before.data),
                  bias};
    const auto [it, fresh] = plans_.try_emplace(key);
    Planned& p = it->second;
    if (!fresh) return p;
    check(cublasLtMatmulDescCreate(&p.op, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product");
    cublasLtMatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_TRANSA, &x.op, sizeof x.op);
    cublasLtMatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_TRANSB, &y.op, sizeof y.op);
    if (bias) {
      const cublasLtEpilogue_t add_bias = CUBLASLT_EPILOGUE_BIAS;
      cublasLtMatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_EPILOGUE, &add_bias,
                                     sizeof add_bias);
    }
    p.x = layout(b.dtype, x.rows, x.cols, x.step);
    p.y = layout(a.dtype, y.rows, y.cols, y.step);
    p.plus = layout(c.dtype, c.cols, c.rows, std::max(before.row_step, c.cols));
    p.d = layout(c.dtype, c.cols, c.rows, std::max(c.row_step, c.cols));

    cublasLtMatmulPreference_t preference = nullptr;
    check(cublasLtMatmulPreferenceCreate(&preference), "asking for an algorithm");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
      cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value);
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(alignment(b.data)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(alignment(a.data)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
           static_cast<uint32_t>(alignment(before.data)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(alignment(c.data)));
    std::vector<Proposal> proposed(8);
    int found = 0;
    const cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(
        handle_, p.op, p.x, p.y, p.plus, p.d, preference,
        hopper_ ? static_cast<int>(proposed.size()) : 1, proposed.data(), &found);
    cublasLtMatmulPreferenceDestroy(preference);
    if (s != CUBLAS_STATUS_SUCCESS || found == 0) {
      plans_.erase(it);
      fail("cuBLASLt: no algorithm for a product of ({}, {}) by ({}, {}) in {}", a.rows, a.cols,
           b.rows, b.cols, name_of(a.dtype));
    }
    proposed.resize(static_cast<size_t>(found));
    // The copy engine brings tiles of rows that begin at 16 bytes.
    const auto in_lines = [](const void* data, int64_t step, DType t) {
      return alignment(data) == 16 && step * static_cast<int64_t>(size_of(t)) % 16 == 0;
    };
    if (hopper_ && a.dtype == DType::bf16 && in_lines(b.data, x.step, b.dtype) &&
        in_lines(a.data, y.step, a.dtype) && in_lines(c.data, c.row_step, c.dtype) &&
        in_lines(before.data, before.row_step, c.dtype))
      propose_own_tiles(p, c, proposed);
    const Proposal& best = best_of(proposed, a, c);
    p.algo = best.algo;
    p.workspace = best.workspaceSize;
    return p;
  }

  // Those that one group has for itself and that the library did not propose.
  void propose_own_tiles(const Planned& p, const Matrix& c, std::vector<Proposal>& proposed) const {
    const cublasLtMatmulAlgo_t first = proposed[0].algo;
    const cudaDataType result = type_of(c.dtype);
    // Tiles follow each other along the shorter side of the result; pairs of blocks share what they read.
    const bool along_rows = c.cols > c.rows;
    for (const Tile& t : kTiles) {
      const auto same = [&](const Proposal& other) { return tile_of(other) == &t; };
      if (!t.own || std::any_of(proposed.begin(), proposed.end(), same)) continue;
      cublasLtMatmulAlgo_t algo{};
      if (cublasLtMatmulAlgoInit(handle_, CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF, CUDA_R_16BF,
                                 result, result, config(first, CUBLASLT_ALGO_CONFIG_ID),
                                 &algo) != CUBLAS_STATUS_SUCCESS)
        continue;
      const auto set = [&](cublasLtMatmulAlgoConfigAttributes_t what, auto value) {
        cublasLtMatmulAlgoConfigSetAttribute(&algo, what, &value, sizeof value);
      };
      set(CUBLASLT_ALGO_CONFIG_TILE_ID, t.id);
      set(CUBLASLT_ALGO_CONFIG_STAGES_ID, config(first, CUBLASLT_ALGO_CONFIG_STAGES_ID));
      set(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, int32_t{1});
      set(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
      set(CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION,
          (along_rows ? kAlongRows : kAlongColumns) - (t.wide ? 0 : 1));
      set(CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID,
          static_cast<uint16_t>(along_rows ? CUBLASLT_CLUSTER_SHAPE_1x2x1
                                           : CUBLASLT_CLUSTER_SHAPE_2x1x1));
      Proposal more{};
      if (cublasLtMatmulAlgoCheck(handle_, p.op, p.x, p.y, p.plus, p.d, &algo, &more) !=
              CUBLAS_STATUS_SUCCESS ||
          more.state != CUBLAS_STATUS_SUCCESS || more.workspaceSize > kWorkspace)
        continue;
      more.algo = algo;
      proposed.push_back(more);
    }
  }

  std::mutex mutex_;
  cublasLtHandle_t handle_ = nullptr;
  bool hopper_ = false;  // its kernels have groups of warps
  DeviceMemory workspace_;
  Counters counters_;
  std::map<Key, Planned> plans_;
};

Library& library(int device) {
  static std::mutex mutex;
  static std::map<int, std::unique_ptr<Library>> all;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Library>& l = all[device];
  if (!l) l = std::make_unique<Library>(device);
  return *l;
}

}  // namespace

void matmul(const Matrix& a, const Matrix& b, const Matrix& c, const Epilogue& e, int device,
            Stream stream) {
  require(a.cols == b.rows && c.rows == a.rows && c.cols == b.cols && a.dtype == b.dtype &&
              c.col_step == 1,
          "matmul: sizes of ({}, {}) by ({}, {}) into ({}, {}) do not fit", a.rows, a.cols, b.rows,
          b.cols, c.rows, c.cols);
  if (c.rows == 0 || c.cols == 0) return;
  if (a.cols == 0) {  // an empty sum, which the library refuses
    require(!e.plus && !e.bias, "matmul: a product over nothing has neither bias nor plus");
    const size_t element = size_of(c.dtype);
    if (!e.add)
      check(cudaMemset2DAsync(c.data, static_cast<size_t>(c.row_step) * element, 0,
                              static_cast<size_t>(c.cols) * element, static_cast<size_t>(c.rows),
                              static_cast<cudaStream_t>(stream)),
            "clearing a product");
    return;
  }
  library(device).run(a, b, c, e, stream);
}

void prepare_recorded_products(int device) { library(device).start_recording(); }

void clear_counters_first(void* graph, int device) {
  library(device).counters().clear_first(static_cast<cudaGraph_t>(graph));
}

}  // namespace krait::cuda
