// Sequences with one answer each: texts to be classified, series from which a number follows.
//
// A source is a .jsonl with one object a line:
//   "text", a string; or "tokens", a list of ids; or "values", the vectors of a series one after the other, a
//     list of lists of numbers (a list of numbers: vectors of one), or a file beside the .jsonl: .npy float32
//     (L, F), or .wav, .flac or .ogg, the mean of its channels cut into vectors of as many samples as the model reads
//   "label", the name or number of a class; or "target", a number or a list of numbers; neither is looked at where
//     answers are to be found out
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "krait/data/examples.h"
#include "krait/data/tokens.h"

namespace krait {

struct SequenceFormat {
  int64_t vocab_size = 0;
  bool numbers = false;  // "target" is read, not "label"
  bool answers = true;   // false: neither of them
  bool place = false;  // one more token or vector, zero, behind each: the place of a learned token
  // numbers of a vector that the model reads; 0: not known (then a sound's vectors have one sample)
  int64_t inputs = 0;
  int64_t longest = 0;  // of longer ones only so many tokens are read, the first; 0: all
};

class SequenceExamples : public Examples {
 public:
  // Reads everything into memory. `names` as ImageExamples. Error where lines are not alike: in whether they
  // are series, the numbers of a vector, of a target.
  SequenceExamples(const std::vector<std::string>& sources, const SequenceFormat& format,
                   const Encode& encode, std::vector<std::string> names);

  int64_t size() const override { return static_cast<int64_t>(all_.size()); }
  Example read(int64_t i) const override { return all_[static_cast<size_t>(i)]; }
  std::string name(int64_t i) const override { return where_[static_cast<size_t>(i)]; }
  std::string description() const override;
  uint64_t checksum() const override;

  int64_t inputs() const { return inputs_; }    // numbers of a vector; 0: these are tokens
  int64_t outputs() const { return outputs_; }  // classes, or numbers of a target
  int64_t cut() const { return cut_; }          // sequences that were longer than the longest
  const std::vector<std::string>& names() const { return names_; }

  // Error where they are not of this kind; `outputs` classes may be more than there are here, answers be unknown.
  void require_kind(int64_t inputs, int64_t outputs) const;

 private:
  std::vector<Example> all_;
  std::vector<std::string> where_;
  std::vector<std::string> names_;
  bool numbers_, answers_;
  int64_t inputs_ = 0, outputs_ = 0, cut_ = 0;
};

}  // namespace krait
