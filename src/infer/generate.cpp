#include "krait/infer/generate.h"

#include <algorithm>
#include <deque>
#include <memory>

#include "krait/infer/stop_text.h"

namespace krait {

const char* name_of(Finish f) {
  constexpr const char* kNames[] = {"length", "stop", "eos", "cancelled"};
  return kNames[static_cast<int>(f)];
}

namespace {

// Tokens that a row has room for from the start: the loop takes no memory until there are more.
constexpr int64_t kReserved = 1 << 16;

// A row on its way.
class Row {
 public:
  Row(size_t index, Start start, const GenerateOptions& o)
      : index_(index),
        history_(std::move(start.history)),
        stream_(start.stream),
        o_(o),
        stop_(o.stop) {
    const auto expected = static_cast<size_t>(std::min(o.max_new, kReserved));
    history_.reserve(history_.size() + expected);
    result.tokens.reserve(expected);
    result.logprobs.reserve(expected);
    if (!o.tokenizer) return;
    // The new text goes on where the prompt ends: no space is stripped as at the start of a text, and a
    // character cut in two is completed.
    decoder_ = std::make_unique<StreamDecoder>(*o.tokenizer, /*skip_special=*/true);
    constexpr size_t kEnough = 8;
    for (size_t i = history_.size() - std::min(history_.size(), kEnough); i < history_.size(); ++i)
      decoder_->push(history_[i]);
    if (history_.empty())  // behind a state: not at the start of a text either
      for (const int32_t id : o.tokenizer->encode("a", false)) decoder_->push(id);
  }

  size_t index() const { return index_; }
  bool done() const { return done_; }
  ops::SampleRow sample_row(int64_t position) const {
    return {history_, stream_, static_cast<uint64_t>(position)};
  }

  void take(const ops::Sampled& s) {
    result.tokens.push_back(s.token);
    result.logprobs.push_back(s.logprob);
    history_.push_back(s.token);
    if (std::find(o_.eos.begin(), o_.eos.end(), s.token) != o_.eos.end()) return end(Finish::eos);
    if (decoder_) show(stop_.push(decoder_->push(s.token)));
    if (stop_.found()) return end(Finish::stop);
    if (static_cast<int64_t>(result.tokens.size()) == o_.max_new) end(Finish::length);
  }

  void end(Finish why) {
    done_ = true;
    result.finish = why;
    if (!decoder_ || why == Finish::stop) return;
    show(stop_.push(decoder_->finish()));
    if (stop_.found()) result.finish = Finish::stop;
    show(stop_.finish());
  }

  Generated result;

 private:
  void show(const std::string& text) {
    if (text.empty()) return;
    result.text += text;
    if (o_.text) o_.text(index_, text);
  }

  size_t index_;
  std::vector<int32_t> history_;
  uint64_t stream_;
  const GenerateOptions& o_;
  StopText stop_;
  std::unique_ptr<StreamDecoder> decoder_;
  bool done_ = false;
};

class Generation {
 public:
  Generation(Session& session, std::vector<Start> starts, const GenerateOptions& o)
      : session_(session),
        o_(o),
        sampler_(session.context().device, session.batch()),
        ahead_(session.context().device.type == Device::cuda) {
    require(static_cast<int64_t>(starts.size()) == session.batch(),
            "generate: {} prompts for {} rows", starts.size(), session.batch());
    sample_rows_.reserve(starts.size());
    for (size_t b = 0; b < starts.size(); ++b) {
      rows_.emplace_back(b, std::move(starts[b]), o);
      active_.push_back(&rows_.back());
    }
  }

  std::vector<Generated> run() {
    while (!active_.empty()) {
      const bool cancelled = o_.cancelled && o_.cancelled();
      if (cancelled || o_.max_new == 0) {
        // No new token: every row stands where it has read to.
        for (Row* row : active_) row->end(cancelled ? Finish::cancelled : Finish::length);
        drop_done();
        break;
      }
      if (!drawn_ahead_) draw();
      // A GPU reads the token while the host looks at it, and draws the next one: what a row does behind its last one
      // is dropped with it.
      if (!ahead_) take();
      if (goes_on()) step();
      if (ahead_) take();
      drop_done();
    }
    std::vector<Generated> results;
    for (Row& row : rows_) results.push_back(std::move(row.result));
    return results;
  }

 private:
  void draw() {
    sample_rows_.clear();
    for (size_t i = 0; i < active_.size(); ++i)
      sample_rows_.push_back(active_[i]->sample_row(session_.tokens_read(static_cast<int64_t>(i))));
    sampler_.draw(session_.context(), session_.logits(), session_.model().config().vocab_size,
                  o_.sampler, sample_rows_);
    ++drawn_;
  }

  void step() {
    drawn_ahead_ = drawn_ < o_.max_new && sampler_.goes_on();
    if (!drawn_ahead_) return session_.step(sampler_.tokens());
    session_.step_and_draw(sampler_);
    ++drawn_;
  }

  void take() {
    const std::span<const ops::Sampled> sampled = sampler_.read();
    for (size_t i = 0; i < active_.size(); ++i) active_[i]->take(sampled[i]);
  }

  // Whether the tokens that were drawn are read, by what is known of them.
  bool goes_on() const {
    return o_.read_last ||
           (drawn_ < o_.max_new && std::any_of(active_.begin(), active_.end(),
                                               [](const Row* row) { return !row->done(); }));
  }

  void drop_done() {
    std::vector<int64_t> keep;
    std::vector<Row*> left;
    for (size_t i = 0; i < active_.size(); ++i) {
      const auto session_row = static_cast<int64_t>(i);
      if (!active_[i]->done()) {
        keep.push_back(session_row);
        left.push_back(active_[i]);
      } else if (o_.finished) {
        o_.finished(active_[i]->index(), session_.snapshot(session_row));
      }
    }
    if (left.size() == active_.size()) return;
    session_.keep_rows(keep);
    active_ = std::move(left);
    if (drawn_ahead_) --drawn_;
    drawn_ahead_ = false;  // of the rows as they were
  }

  Session& session_;
  const GenerateOptions& o_;
  std::deque<Row> rows_;
  std::vector<Row*> active_;  // row i of the session
  ops::Sampler sampler_;
  bool ahead_;
  int64_t drawn_ = 0;         // tokens of each row
  bool drawn_ahead_ = false;  // one of them before the host has seen the one that it follows
  std::vector<ops::SampleRow> sample_rows_;
};

}  // namespace

std::vector<Generated> generate(Session& session, std::vector<Start> starts,
                                const GenerateOptions& options) {
  return Generation(session, std::move(starts), options).run();
}

}  // namespace krait
