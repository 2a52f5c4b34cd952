#include "krait/tensor/cpu/matmul.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <utility>

#include "krait/base/threads.h"
#include "krait/tensor/cpu/convert.h"
#include "krait/tensor/cpu/kernels.h"

namespace krait::cpu {

namespace {

// oneDNN spreads its work over OpenMP's threads, and for some shapes its sums then depend on how many
// there are. Every call here is made as if there was one; the pieces are spread by parallel_for.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;

 private:
  int before_;
};

// What a primitive is made for. All members are int64_t: hashed and compared as plain words.
struct Key {
  int64_t m, n, k;
  int64_t a_row, a_col, b_row, b_col, c_row;
  int64_t factors, result;  // DType
  int64_t bias, add;

  using Words = std::array<int64_t, 12>;
  Words words() const {
    return {m, n, k, a_row, a_col, b_row, b_col, c_row, factors, result, bias, add};
  }
  bool operator==(const Key&) const = default;
};

struct Hash {
  size_t operator()(const Key& key) const {
    uint64_t h = 0;
    for (int64_t w : key.words())
      h = (h ^ static_cast<uint64_t>(w)) * 0x9E3779B97F4A7C15ull, h ^= h >> 29;
    return h;
  }
};

const dnnl::engine& engine() {
  static const dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}

dnnl::memory::data_type type_of(int64_t t) {
  return static_cast<DType>(t) == DType::bf16 ? dnnl::memory::data_type::bf16
                                              : dnnl::memory::data_type::f32;
}

struct Product {
  dnnl::memory::desc a, b, c, bias, scratch;
  dnnl::matmul primitive;

  explicit Product(const Key& q)
      : a({q.m, q.k}, type_of(q.factors), dnnl::memory::dims{q.a_row, q.a_col}),
        b({q.k, q.n}, type_of(q.factors), dnnl::memory::dims{q.b_row, q.b_col}),
        c({q.m, q.n}, type_of(q.result), dnnl::memory::dims{q.c_row, 1}) {
    const OneThread one;
    if (q.bias) bias = {{1, q.n}, dnnl::memory::data_type::f32, dnnl::memory::dims{q.n, 1}};
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (q.add) {
      dnnl::post_ops ops;
      ops.append_sum(1.0f);
      attr.set_post_ops(ops);
    }
    const auto desc = q.bias ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c);
    const dnnl::matmul::primitive_desc pd(desc, attr, engine());
    scratch = pd.scratchpad_desc();
    primitive = dnnl::matmul(pd);
  }
};

// Primitives by shape. When full it starts anew: shapes of a running program are few.
class Products {
 public:
  std::shared_ptr<const Product> get(const Key& key) {
    const std::lock_guard lock(mutex_);
    auto& slot = map_[key];
    if (slot) return slot;
    try {
      auto made = std::make_shared<const Product>(key);
      if (map_.size() > kMost) map_.clear();
      return map_[key] = std::move(made);
    } catch (const dnnl::error& e) {
      map_.erase(key);
      fail("[matmul] oneDNN refuses ({}, {}) x ({}, {}) of {}: {}", key.m, key.k, key.k, key.n,
           name_of(static_cast<DType>(key.factors)), e.what());
    }
  }

 private:
  static constexpr size_t kMost = 1024;
  std::mutex mutex_;
  std::unordered_map<Key, std::shared_ptr<const Product>, Hash> map_;
};

Products& products() {
  static Products p;
  return p;
}

// Memory of a thread for one purpose, reused by all products; grows to the largest need (a few megabytes:
// pieces are small).
enum Purpose { kForLibrary, kForA, kForB, kForC, kPurposes };

void* thread_scratch(Purpose purpose, size_t bytes) {
  constexpr size_t kAlign = 64;
  thread_local std::unique_ptr<std::byte[]> blocks[kPurposes];
  thread_local size_t sizes[kPurposes] = {};
  if (bytes > sizes[purpose]) {
    blocks[purpose] = std::make_unique_for_overwrite<std::byte[]>(bytes + kAlign);
    sizes[purpose] = bytes;
  }
  const auto at = reinterpret_cast<uintptr_t>(blocks[purpose].get());
  return reinterpret_cast<void*>((at + kAlign - 1) / kAlign * kAlign);
}

// C (+)= A B (+ bias) by the calling thread.
void multiply(const Matrix& a, const Matrix& b, const Matrix& c, const float* bias, bool add) {
  const auto p = products().get({a.rows, b.cols, a.cols, a.row_step, a.col_step, b.row_step,
                                 b.col_step, c.row_step, static_cast<int64_t>(a.dtype),
                                 static_cast<int64_t>(c.dtype), bias != nullptr, add});
  thread_local dnnl::stream stream(engine());
  const auto at = [](const dnnl::memory::desc& d, void* data) {
    return dnnl::memory(d, engine(), data);
  };
  std::unordered_map<int, dnnl::memory> args = {{DNNL_ARG_SRC, at(p->a, a.data)},
                                                {DNNL_ARG_WEIGHTS, at(p->b, b.data)},
                                                {DNNL_ARG_DST, at(p->c, c.data)}};
  if (bias) args.insert({DNNL_ARG_BIAS, at(p->bias, const_cast<float*>(bias))});
  if (const size_t bytes = p->scratch.get_size())
    args.insert({DNNL_ARG_SCRATCHPAD, at(p->scratch, thread_scratch(kForLibrary, bytes))});
  const OneThread one;
  p->primitive.execute(stream, args);
}

std::byte* element(const Matrix& x, int64_t i, int64_t j) {
  return static_cast<std::byte*>(x.data) +
         (i * x.row_step + j * x.col_step) * static_cast<int64_t>(size_of(x.dtype));
}

Matrix part(const Matrix& x, int64_t i, int64_t j, int64_t rows, int64_t cols) {
  return {element(x, i, j), x.dtype, rows, cols, x.row_step, x.col_step};
}

// A bfloat16 matrix as float32, in the same layout without gaps.
Matrix widened(const Matrix& x, Purpose purpose) {
  const bool by_rows = x.col_step == 1;
  const int64_t lines = by_rows ? x.rows : x.cols, length = by_rows ? x.cols : x.rows;
  auto* const to = static_cast<float*>(
      thread_scratch(purpose, static_cast<size_t>(lines * length) * sizeof(float)));
  for (int64_t i = 0; i < lines; ++i)
    KRAIT_PICK_ISA(convert_kernels)
        .bf16_to_f32(reinterpret_cast<uint16_t*>(by_rows ? element(x, i, 0) : element(x, 0, i)),
                     to + i * length, length, false);
  const Matrix dense{to, DType::f32, lines, length, length, 1};
  return by_rows ? dense : dense.transposed();
}

// multiply for bfloat16 where the library cannot, or should not: in float32.
void multiply_widened(const Matrix& a, const Matrix& b, const Matrix& c, const float* bias,
                      bool add) {
  const Matrix a32 = widened(a, kForA), b32 = widened(b, kForB);
  if (c.dtype == DType::f32) {
    multiply(a32, b32, c, bias, add);
    return;
  }
  auto* const sums = static_cast<float*>(
      thread_scratch(kForC, static_cast<size_t>(c.rows * c.cols) * sizeof(float)));
  multiply(a32, b32, {sums, DType::f32, c.rows, c.cols, c.cols, 1}, bias, false);
  for (int64_t i = 0; i < c.rows; ++i)
    KRAIT_PICK_ISA(convert_kernels)
        .f32_to_bf16(sums + i * c.cols, reinterpret_cast<uint16_t*>(element(c, i, 0)), c.cols, add);
}

// oneDNN 2.6 multiplies bfloat16 only with AVX-512.
bool has_bf16_products() {
  static const bool has = [] {
    const dnnl::memory::desc d({16, 16}, dnnl::memory::data_type::bf16,
                               dnnl::memory::format_tag::ab);
    try {
      const dnnl::matmul::primitive_desc pd(dnnl::matmul::desc(d, d, d), engine());
      return true;
    } catch (const dnnl::error&) {
      return false;
    }
  }();
  return has;
}

// Kernels for AMX take 32 bfloat16 terms at a time. Those that oneDNN 2.6 makes for 63 terms end with an illegal
// instruction (its issue 1661): what is not made of whole tiles goes another way.
bool breaks_tiles(int64_t terms) {
  static const bool has_tiles = [] {
    const auto tiles = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_amx);
    return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & tiles) == tiles;
  }();
  return has_tiles && terms % 32 != 0;
}

// How C is cut: so many pieces along each axis.
struct Pieces {
  int64_t along_m, along_n;
};

// Where piece i begins. The pieces of an axis are of about one size, so that threads which take as many end together.
int64_t border(int64_t i, int64_t pieces, int64_t size, int64_t unit) {
  return i == pieces ? size : i * size / pieces / unit * unit;
}

// Measured (Zen 4, both factor types): every piece copies its rows of A and its columns of B into the library's order,
// a row's element dearer than a column's, so that of as many pieces the squarest are best; from 512 rows and 4096
// columns on nothing is gained. At least 8 pieces, where there is that much, keep several threads busy.
Pieces cut(int64_t rows, int64_t cols) {
  constexpr int64_t kLeast = 8;
  const auto pieces = [](int64_t size, int64_t most) { return (size + most - 1) / most; };
  const int64_t first = pieces(rows, 512), last = std::max(first, std::min(kLeast, rows / 64));
  int64_t along_m = first, along_n = 1, best = 0;
  double least = 0;
  for (int64_t m = first; m <= last; ++m) {
    const int64_t n =
        std::max(pieces(cols, 4096), std::min(pieces(kLeast, m), std::max<int64_t>(1, cols / 128)));
    const int64_t count = std::min(kLeast, m * n);
    const double copies = 1.4 * static_cast<double>(n * rows) + static_cast<double>(m * cols);
    if (count > best || (count == best && copies < least))
      along_m = m, along_n = n, best = count, least = copies;
  }
  return {along_m, along_n};
}

void check(const Matrix& a, const Matrix& b, const Matrix& c, const Epilogue& e) {
  require(a.cols == b.rows && a.rows == c.rows && b.cols == c.cols,
          "[matmul] sizes do not fit: ({}, {}) x ({}, {}) -> ({}, {})", a.rows, a.cols, b.rows,
          b.cols, c.rows, c.cols);
  const bool f32 = a.dtype == DType::f32 && b.dtype == DType::f32 && c.dtype == DType::f32;
  const bool bf16s = a.dtype == DType::bf16 && b.dtype == DType::bf16 &&
                     (c.dtype == DType::f32 || c.dtype == DType::bf16);
  require(f32 || bf16s, "[matmul] types do not fit: {} x {} -> {}", name_of(a.dtype),
          name_of(b.dtype), name_of(c.dtype));
  for (const Matrix* x : {&a, &b})
    require(x->row_step == 1 || x->col_step == 1, "[matmul] a factor needs one dense axis");
  require(c.col_step == 1, "[matmul] the rows of the result must be dense");
  if (e.plus) {
    require(!e.add && c.dtype == DType::f32 && e.plus->dtype == DType::f32 &&
                e.plus->rows == c.rows && e.plus->cols == c.cols && e.plus->col_step == 1,
            "[matmul] plus: expected a float32 matrix like the float32 result");
  }
}

}  // namespace

Matrix matrix(const Tensor& t) {
  require(t.row_strided(), "[matmul] expected rows at one distance, got shape {}", t.shape);
  const int64_t cols = t.size(-1);
  int64_t rows = 1;
  for (int i = 0; i + 1 < t.rank(); ++i) rows *= t.size(i);
  return {t.data, t.dtype, rows, cols, t.row_stride(), 1};
}

void matmul(const Matrix& a, const Matrix& b, const Matrix& c, const Epilogue& e) {
  check(a, b, c, e);
  if (c.rows == 0 || c.cols == 0) return;
  if (a.cols == 0) {
    require(!e.bias && !e.plus, "[matmul] the inner size is 0");
    for (int64_t r = 0; !e.add && r < c.rows; ++r)
      std::memset(element(c, r, 0), 0, static_cast<size_t>(c.cols) * size_of(c.dtype));
    return;
  }
  const Pieces p = cut(c.rows, c.cols);
  const bool widen = a.dtype == DType::bf16 && (breaks_tiles(a.cols) || !has_bf16_products());
  parallel_for(p.along_m * p.along_n, [&](int64_t piece) {
    const auto row = [&](int64_t k) { return border(k, p.along_m, c.rows, 16); };
    const auto column = [&](int64_t k) { return border(k, p.along_n, c.cols, 64); };
    const int64_t i = row(piece / p.along_n), j = column(piece % p.along_n);
    const int64_t rows = row(piece / p.along_n + 1) - i, cols = column(piece % p.along_n + 1) - j;
    const Matrix to = part(c, i, j, rows, cols);
    if (e.plus) {  // brought into the caches just before the product adds to it
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(element(to, r, 0), element(*e.plus, i + r, j),
                    static_cast<size_t>(cols) * sizeof(float));
    }
    (widen ? multiply_widened : multiply)(part(a, i, 0, rows, a.cols), part(b, 0, j, a.cols, cols),
                                          to, e.bias ? e.bias + j : nullptr, e.add || e.plus);
  });
}

void matmul_into(Context& c, const Matrix& a, const Matrix& b, const Tensor& result, Epilogue e) {
  if (a.dtype == DType::f32 && result.dtype == DType::bf16) {
    const Tensor s = c.scratch(result.shape, DType::f32);
    const bool add = std::exchange(e.add, false);
    if (c.planning()) return;
    matmul(a, b, matrix(s), e);
    convert_rows(s, result, add);
  } else if (!c.planning()) {
    matmul(a, b, matrix(result), e);
  }
}

}  // namespace krait::cpu
