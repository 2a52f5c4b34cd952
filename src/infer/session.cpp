#include "krait/infer/session.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "krait/infer/memory.h"
#include "krait/ops/attention/attention.h"
#include "krait/tensor/memory.h"

namespace krait {

namespace {

// Enough rows for products at their best speed.
SessionOptions complete(const models::LanguageModel& model, SessionOptions o) {
  if (o.chunk == 0) o.chunk = model.params().device().type == Device::cpu ? 512 : 8192;
  const int64_t most = int64_t{1} << 40;
  require(o.batch <= most / std::max<int64_t>(1, o.context),
          "{} sequences of {} tokens: no machine remembers that many", o.batch, o.context);
  return o;
}

PassLimits limits_of(const SessionOptions& o) {
  return {o.activation, o.chunk, o.batch, o.context, o.scan_state};
}

// Logits of the last token of every row: the most that a pass of a session asks for.
UseHidden last_logits(const models::LanguageModel& model, int64_t batch) {
  return [&model, batch](Context& c, const Tensor& hidden) {
    const int64_t rows = hidden.size(0) * hidden.size(1), D = hidden.size(2),
                  n = std::min(batch, rows);
    model.logits(c, n == rows ? hidden : c.alloc({n, D}, hidden.dtype));
  };
}

// Refuses what does not fit before anything is taken.
nn::State checked_state(const models::LanguageModel& model, const SessionOptions& o) {
  require(o.batch > 0 && o.chunk > 0, "a session needs at least one row and one token a pass");
  const SessionPlan p = plan_session(model, o);
  const Device device = model.params().device();
  // On a GPU the weights are there already.
  require_memory(p.total() - (device.type == Device::cpu ? 0 : p.weights),
                 fmt::format("{} sequences: weights {}, states {}, logits {}, working memory {}",
                             o.batch, bytes_text(p.weights), bytes_text(p.state),
                             bytes_text(p.logits), bytes_text(p.working)),
                 device);
  return model.make_state(o.batch, o.context, o.state_types());
}

}  // namespace

SessionPlan plan_session(const models::LanguageModel& model, const SessionOptions& given) {
  const SessionOptions options = complete(model, given);
  SessionPlan p;
  for (const nn::Param& param : model.params()) p.weights += param.value.bytes();
  p.state = static_cast<size_t>(options.batch) *
            nn::state_bytes(model.state_parts(), options.context, options.state_types());
  p.logits = static_cast<size_t>(options.batch * model.config().padded_vocab()) * sizeof(float);
  p.working = plan_passes(model, limits_of(options), last_logits(model, options.batch));
  return p;
}

Session::Session(const models::LanguageModel& model, const SessionOptions& options)
    : model_(model),
      options_(complete(model, options)),
      vocab_(model.config().padded_vocab()),
      all_(checked_state(model, options_)),
      state_(all_.first(options.batch)),
      logits_memory_(model.params().device(),
                     static_cast<size_t>(options.batch * vocab_) * sizeof(float)),
      logits_(logits_of(0, options.batch)),
      tokens_read_(static_cast<size_t>(options.batch), 0),
      runner_(model, limits_of(options_),
              [this](Context& c, const Tensor& h) { take_logits(c, h); }) {
  for (auto* v : {&ends_, &end_rows_}) v->reserve(static_cast<size_t>(options.batch));
  pass_tokens_.reserve(static_cast<size_t>(options_.chunk));
  pass_sequences_.reserve(static_cast<size_t>(options.batch));
  fill(context(), logits_, std::numeric_limits<float>::quiet_NaN());
}

void Session::take_logits(Context& c, const Tensor& hidden) {
  if (c.planning()) return last_logits(model_, options_.batch)(c, hidden);
  if (ends_.empty()) return;
  const bool every = static_cast<int64_t>(ends_.size()) == hidden.size(0) * hidden.size(1);
  const auto n = static_cast<int64_t>(ends_.size());
  const Tensor last = every ? hidden.reshape({n, hidden.size(2)}) : gather_rows(c, hidden, ends_);
  if (n == batch()) return model_.logits_into(c, last, logits_);
  const Tensor from = model_.logits(c, last);
  for (int64_t i = 0; i < n; ++i)
    copy_bytes(from.slice(0, i, i + 1), logits_of(end_rows_[static_cast<size_t>(i)], 1), c.stream);
}

void Session::run_pass() {
  if (pass_sequences_.empty()) return;
  runner_.packed(pass_tokens_, pass_sequences_, state_, state_);
  for (const Sequence& s : pass_sequences_)
    tokens_read_[static_cast<size_t>(s.state_out)] += s.tokens;
  if (options_.after_pass) options_.after_pass(static_cast<int64_t>(pass_tokens_.size()));
  forget_pass();
}

void Session::forget_pass() {
  ends_.clear();
  end_rows_.clear();
  pass_tokens_.clear();
  pass_sequences_.clear();
}

void Session::read(std::span<const std::span<const int32_t>> rows) {
  require(static_cast<int64_t>(rows.size()) == batch(), "read: {} sequences for {} rows",
          rows.size(), batch());
  for (const std::span<const int32_t> tokens : rows)
    model_.check_tokens(tokens.data(), static_cast<int64_t>(tokens.size()));
  forget_pass();  // one that an error cut short
  int64_t longest = 0;
  for (size_t row = 0; row < rows.size(); ++row)
    longest = std::max(longest, tokens_read_[row] + static_cast<int64_t>(rows[row].size()));
  make_room(longest);
  for (size_t row = 0; row < rows.size(); ++row) {
    std::span<const int32_t> left = rows[row];
    while (!left.empty()) {
      const size_t room = static_cast<size_t>(options_.chunk) - pass_tokens_.size();
      const std::span<const int32_t> piece = left.first(std::min(room, left.size()));
      left = left.subspan(piece.size());
      pass_tokens_.insert(pass_tokens_.end(), piece.begin(), piece.end());
      const auto r = static_cast<int32_t>(row);
      pass_sequences_.push_back({static_cast<int64_t>(piece.size()), r, r});
      if (left.empty()) {
        ends_.push_back(static_cast<int64_t>(pass_tokens_.size()) - 1);
        end_rows_.push_back(static_cast<int64_t>(row));
      }
      if (static_cast<int64_t>(pass_tokens_.size()) == options_.chunk) run_pass();
    }
  }
  run_pass();
  synchronize(context().device, context().stream);
}

void Session::step(std::span<const int32_t> tokens) {
  step_rows(static_cast<int64_t>(tokens.size()), [&] { runner_.step(tokens, state_); });
}

void Session::step(const Tensor& tokens) {
  step_rows(tokens.numel(), [&] { runner_.step(tokens, state_); });
}

void Session::step_and_draw(ops::Sampler& sampler) {
  const Tensor tokens = sampler.tokens();
  sampler.expect_next(context().stream);
  const Behind draw{sampler.next_id(), [&](Context& c) { sampler.draw_next(c, logits_); }};
  step_rows(tokens.numel(), [&] { runner_.step(tokens, state_, draw); });
}

template <class Run>
void Session::step_rows(int64_t n, const Run& run) {
  require(n == batch(), "step: {} tokens for {} rows", n, batch());
  for (auto* v : {&ends_, &end_rows_}) {
    v->resize(tokens_read_.size());
    std::iota(v->begin(), v->end(), int64_t{0});
  }
  make_room(1 + *std::max_element(tokens_read_.begin(), tokens_read_.end()));
  run();
  for (int64_t& read : tokens_read_) ++read;
}

Snapshot Session::snapshot(int64_t row) const {
  Snapshot s;
  s.state = model_.make_state(1, tokens_read(row), options_.state_types());
  s.state.copy_row(0, state_, row);
  s.tokens = tokens_read(row);
  if (s.tokens > 0) {
    s.logits.resize(static_cast<size_t>(vocab_));
    download(logits_of(row, 1), s.logits.data());
  }
  return s;
}

void Session::restore(int64_t row, const Snapshot& s) {
  require(s.logits.empty() || static_cast<int64_t>(s.logits.size()) == vocab_,
          "restore: a snapshot with {} logits in a session with {}", s.logits.size(), vocab_);
  make_room(s.tokens);
  state_.copy_row(row, s.state, 0);
  tokens_read_[static_cast<size_t>(row)] = s.tokens;
  const Tensor logits = logits_of(row, 1);
  if (s.logits.empty()) {
    fill(context(), logits, std::numeric_limits<float>::quiet_NaN());
  } else {
    upload(s.logits.data(), logits);
  }
}

void Session::keep_rows(std::span<const int64_t> rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t to = static_cast<int64_t>(i), from = rows[i];
    require(from >= to && from < batch() && (i == 0 || from > rows[i - 1]),
            "keep_rows: expected ascending rows below {}, got {}", batch(), from);
    if (from == to) continue;
    state_.copy_row(to, state_, from);
    copy_bytes(logits_of(from, 1), logits_of(to, 1));
    tokens_read_[i] = tokens_read_[static_cast<size_t>(from)];
  }
  tokens_read_.resize(rows.size());
  view_rows();
}

void Session::restart(int64_t n) {
  require(n > 0 && n <= options_.batch, "restart: {} rows of at most {}", n, options_.batch);
  tokens_read_.assign(static_cast<size_t>(n), 0);
  view_rows();
  state_.zero();
  fill(context(), logits_, std::numeric_limits<float>::quiet_NaN());
}

void Session::make_room(int64_t tokens) {
  require(tokens <= ops::kMostCounted ||
              std::none_of(all_.parts().begin(), all_.parts().end(), nn::counts_tokens),
          "a sequence of {} tokens: the attention of this model counts to {}", tokens,
          ops::kMostCounted);
  if (tokens <= all_.capacity() || !nn::grows(all_.parts())) return;
  const int64_t capacity = std::max(tokens, 2 * all_.capacity());
  require_memory(static_cast<size_t>(options_.batch) *
                     nn::state_bytes(all_.parts(), capacity, options_.state_types()),
                 fmt::format("{} sequences of {} tokens: states with room for {}", options_.batch,
                             tokens, capacity),
                 context().device);
  all_.reserve(capacity);
  view_rows();
}

void Session::view_rows() {
  state_ = all_.first(batch());
  logits_ = logits_of(0, batch());
}

}  // namespace krait
