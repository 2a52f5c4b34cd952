// Texts that end a generation, found while the text arrives in pieces: neither they nor a part of them is
// ever let through.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace krait {

class StopText {
 public:
  // No stop may be empty.
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // What is safe to show now that `piece` has arrived.
  std::string push(std::string_view piece);
  // A stop has arrived; what came before it was shown, what comes after is not.
  bool found() const { return found_; }
  // What was held back, once no more comes.
  std::string finish();

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool found_ = false;
};

}  // namespace krait
