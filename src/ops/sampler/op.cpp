#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "krait/base/threads.h"
#include "krait/ops/sampler/cuda.h"
#include "krait/ops/sampler/kernels.h"
#include "krait/ops/sampler/sampler.h"

namespace krait::ops {

namespace {

void check(const Tensor& logits, int64_t valid, const SamplerOptions& o, size_t rows) {
  require(logits.rank() == 2 && logits.dtype == DType::f32 && logits.row_strided(),
          "[sampler] logits: expected float32 (B, V), got {} {}", name_of(logits.dtype),
          logits.shape);
  require(valid > 0 && valid <= logits.size(1), "[sampler] valid: expected 1 to V={}, got {}",
          logits.size(1), valid);
  require(static_cast<int64_t>(rows) == logits.size(0), "[sampler] rows: expected B={}, got {}",
          logits.size(0), rows);
  require(o.temperature >= 0 && std::isfinite(o.temperature),
          "[sampler] temperature: expected 0 or more, got {}", o.temperature);
  require(o.top_k >= 0, "[sampler] top_k: expected 0 (all) or more, got {}", o.top_k);
  require(o.top_p > 0 && o.top_p <= 1, "[sampler] top_p: expected above 0, at most 1, got {}",
          o.top_p);
  require(o.min_p >= 0 && o.min_p <= 1, "[sampler] min_p: expected 0 to 1, got {}", o.min_p);
  require(o.repetition_penalty > 0 && std::isfinite(o.repetition_penalty),
          "[sampler] repetition_penalty: expected above 0, got {}", o.repetition_penalty);
}

// One row while it is sampled. Arrays of `valid` elements.
struct Row {
  const SamplerOptions& o;
  const SamplerKernels& k;
  int64_t valid;
  const float* logits;  // after the penalty
  float* weights;       // exp((logit - largest) / temperature): not normalised probabilities
  int32_t* ids;         // candidates

  // Below a temperature of 1e-6 only ties with the largest logit are left anyway.
  float sharpness() const { return 1 / std::max(o.temperature, 1e-6f); }

  bool more_probable(int32_t a, int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }

  // Fills ids with a set that holds all tokens that top-k and top-p can leave; returns its size. Tokens
  // are counted and weighed by their distance from the largest logit; a bin is wanted whole or not at all.
  int64_t candidates(float most, double total) const {
    constexpr int kBins = 512;
    constexpr float kBinsPerNat = 16;
    const float scale = kBinsPerNat * sharpness();
    const auto bin = [&](int32_t id) {
      const float x = (most - logits[id]) * scale;
      return x < kBins - 1 ? static_cast<int>(x) : kBins - 1;
    };
    std::array<int64_t, kBins> count{};
    std::array<double, kBins> weight{};
    for (int32_t i = 0; i < valid; ++i) {
      const auto b = static_cast<size_t>(bin(i));
      ++count[b];
      weight[b] += static_cast<double>(weights[i]);
    }
    int last = 0;
    int64_t counted = 0;
    double weighed = 0;
    for (; last < kBins - 1; ++last) {
      counted += count[static_cast<size_t>(last)];
      weighed += weight[static_cast<size_t>(last)];
      if (o.top_k > 0 && counted >= o.top_k) break;
      // The share is one of what top-k left, so it can only cut here where there is no top-k. Sums are
      // rounded: a little more than the share is surely enough.
      if (o.top_k == 0 && weighed > static_cast<double>(o.top_p) * total * (1 + 1e-9)) break;
    }
    int64_t n = 0;
    for (int32_t i = 0; i < valid; ++i)
      if (bin(i) <= last) ids[n++] = i;
    return n;
  }

  // Applies top-k, top-p and min-p; returns how many ids are left.
  int64_t choose(float most, double total) const {
    if (o.top_k == 0 && o.top_p == 1) {
      int64_t n = 0;
      for (int32_t i = 0; i < valid; ++i)
        if (weights[i] >= o.min_p) ids[n++] = i;
      return n;
    }
    int64_t n = candidates(most, total);
    const auto before = [&](int32_t a, int32_t b) { return more_probable(a, b); };
    if (o.top_k > 0 && o.top_k < n) {
      std::nth_element(ids, ids + o.top_k, ids + n, before);
      n = o.top_k;
    }
    if (o.top_p < 1) {
      std::sort(ids, ids + n, before);
      double all = 0;
      if (o.top_k > 0) {
        for (int64_t i = 0; i < n; ++i) all += static_cast<double>(weights[ids[i]]);
      } else {
        all = total;
      }
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<double>(weights[ids[i]]);
        if (sum >= static_cast<double>(o.top_p) * all) n = i + 1;  // ends the loop
      }
    }
    n = std::partition(ids, ids + n, [&](int32_t id) { return weights[id] >= o.min_p; }) - ids;
    std::sort(ids, ids + n);  // the order of the draw, whatever was left out
    return n;
  }

  int32_t draw(double u) const {
    const float most = k.largest(logits, valid);
    if (o.temperature == 0)
      return static_cast<int32_t>(std::find(logits, logits + valid, most) - logits);
    const double total = k.sum_of_exp(logits, valid, most, sharpness(), weights);
    const int64_t n = choose(most, total);
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(weights[ids[i]]);
    double left = u * sum;
    int32_t chosen = ids[0];
    for (int64_t i = 0; i < n; ++i) {
      const double w = static_cast<double>(weights[ids[i]]);
      if (w == 0) continue;
      chosen = ids[i];
      if (left < w) break;
      left -= w;
    }
    return chosen;
  }
};

const char* meaning_of(int32_t error) {
  return error == cuda::kHoldsNan        ? "NaN"
         : error == cuda::kHoldsInfinity ? "+inf"
                                         : "nothing but -inf";
}

// Where a draw is put, and where it is in the random numbers: see cuda.h.
struct Places {
  cuda::SamplePlace* places;
  Sampled* result;
  int64_t half;
  int32_t* tokens;
};

// `rows` tell of histories alone.
void draw_on_gpu(Context& c, const Tensor& logits, int64_t valid, const SamplerOptions& o,
                 std::span<const SampleRow> rows, const Places& at) {
  const int64_t B = logits.size(0);
  std::vector<int32_t> history;
  std::vector<int64_t> begin = {0};
  const bool penalty = o.repetition_penalty != 1;
  if (penalty)
    for (const SampleRow& row : rows) {
      history.insert(history.end(), row.history.begin(), row.history.end());
      begin.push_back(static_cast<int64_t>(history.size()));
    }
  Scratch scratch(c);
  Tensor penalised, ids, borders;
  if (penalty) {
    penalised = c.scratch({B, valid}, DType::f32);
    ids = c.scratch({std::max<int64_t>(begin.back(), 1)}, DType::i32);
    borders = c.scratch({B + 1}, DType::i64);
  }
  if (c.planning() || B == 0) return;
  if (penalty) {
    upload(history.data(), ids.slice(0, 0, begin.back()), c.stream);
    upload(begin.data(), borders, c.stream);
  }
  static_assert(sizeof(Sampled) == sizeof(cuda::SampleOut));
  const auto* const where = static_cast<const float*>(logits.data);
  KRAIT_WITH_CUDA(cuda::sample({.logits = where,
                                .stride = logits.row_stride(),
                                .valid = valid,
                                .B = static_cast<int>(B),
                                .temperature = o.temperature,
                                .top_p = o.top_p,
                                .min_p = o.min_p,
                                .penalty = o.repetition_penalty,
                                .top_k = o.top_k,
                                .seed = o.seed,
                                .places = at.places,
                                .history = penalty ? ids.as<int32_t>() : nullptr,
                                .history_begin = penalty ? borders.as<int64_t>() : nullptr,
                                .penalised = penalty ? penalised.as<float>() : nullptr},
                               reinterpret_cast<cuda::SampleOut*>(at.result), at.half, at.tokens,
                               c.stream));
}

using PlaceOfRow = std::array<uint64_t, 2>;  // stream, position: a cuda::SamplePlace

std::vector<PlaceOfRow> places_of(std::span<const SampleRow> rows) {
  std::vector<PlaceOfRow> places;
  for (const SampleRow& row : rows) places.push_back({row.stream, row.position});
  return places;
}

void require_tokens(std::span<const Sampled> result) {
  for (size_t b = 0; b < result.size(); ++b)
    require(result[b].token >= 0, "[sampler] logits: row {} holds {}", b,
            meaning_of(result[b].token));
}

void draw_on_cpu(Context& c, const Tensor& logits, int64_t valid, const SamplerOptions& o,
                 std::span<const SampleRow> rows, Sampled* result) {
  const int64_t B = logits.size(0);
  Scratch scratch(c);
  const Tensor penalised = c.scratch({B, valid}, DType::f32),
               weights = c.scratch({B, valid}, DType::f32), ids = c.scratch({B, valid}, DType::i32);
  if (c.planning()) return;
  const SamplerKernels& k = KRAIT_PICK_ISA(sampler_kernels);
  parallel_for(B, [&](int64_t b) {
    const SampleRow& in = rows[static_cast<size_t>(b)];
    const float* const row = logits.as<float>() + b * logits.row_stride();
    const float most = k.largest(row, valid);
    require(std::isfinite(most), "[sampler] logits: row {} holds {}", b,
            std::isnan(most) ? "NaN"
            : most > 0       ? "+inf"
                             : "nothing but -inf");
    Row r{o, k, valid, row, weights.as<float>() + b * valid, ids.as<int32_t>() + b * valid};
    if (o.repetition_penalty != 1) {
      float* const changed = penalised.as<float>() + b * valid;
      std::memcpy(changed, row, static_cast<size_t>(valid) * sizeof(float));
      for (const int32_t id : in.history) {
        if (id < 0 || id >= valid || !std::isfinite(row[id])) continue;
        const float x =
            row[id] > 0 ? row[id] / o.repetition_penalty : row[id] * o.repetition_penalty;
        constexpr float kMost = std::numeric_limits<float>::max();
        changed[id] = std::clamp(x, -kMost, kMost);
      }
      r.logits = changed;
    }
    Sampled& out = result[b];
    out.token = r.draw(Philox{o.seed, in.stream}.uniform_double(in.position));
    const double log_total =
        static_cast<double>(most) + std::log(k.sum_of_exp(row, valid, most, 1, nullptr));
    out.logprob = static_cast<float>(static_cast<double>(row[out.token]) - log_total);
  });
}

}  // namespace

std::vector<Sampled> sample(Context& c, const Tensor& logits, int64_t valid,
                            const SamplerOptions& o, std::span<const SampleRow> rows) {
  check(logits, valid, o, rows.size());
  c.cost("sampler", static_cast<double>(logits.bytes()), 0);
  const int64_t B = logits.size(0);
  std::vector<Sampled> result(rows.size());
  if (c.device.type == Device::cpu) {
    draw_on_cpu(c, logits, valid, o, rows, result.data());
    return result;
  }
  Scratch scratch(c);
  const Tensor out = c.scratch({B, 2}, DType::i32), tokens = c.scratch({B}, DType::i32),
               places = c.scratch({B, 2}, DType::i64);
  if (!c.planning()) upload(places_of(rows).data(), places, c.stream);
  draw_on_gpu(c, logits, valid, o, rows,
              {static_cast<cuda::SamplePlace*>(places.data), static_cast<Sampled*>(out.data), 0,
               tokens.as<int32_t>()});
  if (c.planning()) return result;
  download(out, result.data(), c.stream);
  require_tokens(result);
  return result;
}

constexpr int32_t kExpected = INT32_MIN;  // in place of a token that the device has not written yet

Sampler::Sampler(Device device, int64_t most_rows)
    : device_(device),
      most_rows_(most_rows),
      tokens_(device, static_cast<size_t>(most_rows) * sizeof(int32_t)),
      places_(device, static_cast<size_t>(most_rows) * sizeof(PlaceOfRow)),
      results_(DeviceMemory::shared_with(device,
                                         2 * static_cast<size_t>(most_rows) * sizeof(Sampled))) {}

void Sampler::draw(Context& c, const Tensor& logits, int64_t valid, const SamplerOptions& o,
                   std::span<const SampleRow> rows) {
  static std::atomic<uint64_t> ids = 0;
  check(logits, valid, o, rows.size());
  require(static_cast<int64_t>(rows.size()) <= most_rows_, "[sampler] {} rows of at most {}",
          rows.size(), most_rows_);
  if (next_id_ == 0 || rows_ != logits.size(0) || valid_ != valid || options_ != o)
    next_id_ = ++ids;
  rows_ = logits.size(0), valid_ = valid, options_ = o;
  if (unread_ > 0) synchronize(device_, stream_);
  unread_ = 0;
  std::vector<PlaceOfRow> places = places_of(rows);
  if (device_.type == Device::cuda && places != next_)
    upload(places.data(),
           Tensor(places_.data(), DType::i64, {static_cast<int64_t>(places.size()), 2}, device_),
           c.stream);
  next_ = std::move(places);
  expect_next(c.stream);
  queue(c, logits, rows);
}

bool Sampler::goes_on() const {
  return device_.type == Device::cuda && options_.repetition_penalty == 1;
}

void Sampler::draw_next(Context& c, const Tensor& logits) {
  require(logits.size(0) == rows_ && goes_on(), "[sampler] draw_next: expected {} rows, got {}",
          rows_, logits.size(0));
  queue(c, logits, {});
}

Sampled& Sampler::result_of(int64_t row, uint64_t position) const {
  const int64_t half = device_.type == Device::cuda && position % 2 ? most_rows_ : 0;
  return reinterpret_cast<Sampled*>(results_.data())[half + row];
}

void Sampler::queue(Context& c, const Tensor& logits, std::span<const SampleRow> rows) {
  c.cost("sampler", static_cast<double>(logits.bytes()), 0);
  auto* const results = reinterpret_cast<Sampled*>(results_.data());
  auto* const tokens = reinterpret_cast<int32_t*>(tokens_.data());
  if (device_.type == Device::cuda)
    return draw_on_gpu(
        c, logits, valid_, options_, rows,
        {reinterpret_cast<cuda::SamplePlace*>(places_.data()), results, most_rows_, tokens});
  draw_on_cpu(c, logits, valid_, options_, rows, results);
  for (int64_t b = 0; b < rows_; ++b) tokens[b] = results[b].token;
}

void Sampler::expect_next(Stream stream) {
  for (int64_t b = 0; b < rows_; ++b) {
    uint64_t& position = next_[static_cast<size_t>(b)][1];
    result_of(b, position++).token = kExpected;
  }
  ++unread_;
  stream_ = stream;
}

Tensor Sampler::tokens() const { return {tokens_.data(), DType::i32, {rows_}, device_}; }

std::span<const Sampled> Sampler::read() {
  require(unread_ > 0, "[sampler] every draw has been read");
  const auto behind = static_cast<uint64_t>(unread_--);
  constexpr int kLooks = 1 << 14;  // before the device is asked whether it can still come
  sampled_.clear();
  for (int64_t b = 0; b < rows_; ++b) {
    Sampled& from = result_of(b, next_[static_cast<size_t>(b)][1] - behind);
    static_assert(sizeof(Sampled) == sizeof(uint64_t));
    const std::atomic_ref<uint64_t> here(
        reinterpret_cast<uint64_t&>(from));  // one write of the device
    const auto now = [&] { return std::bit_cast<Sampled>(here.load(std::memory_order_acquire)); };
    for (int looks = 0; now().token == kExpected; ++looks)
      if (looks % kLooks == kLooks - 1 && is_done(device_, stream_))
        require(now().token != kExpected, "[sampler] row {} was not drawn", b);
    sampled_.push_back(now());
  }
  require_tokens(sampled_);
  return sampled_;
}

}  // namespace krait::ops
