// A reader of Python's pickle format, protocols 2 to 5, that builds plain values and nothing else. Where
// a pickle asks for a class to be found or a function to be called, the wish is noted down and never
// carried out: whoever reads the result decides which of them mean something (torch_archive.cpp knows a
// handful). Format: CPython's Lib/pickletools.py.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace krait {

struct PickleValue {
  enum class Kind : uint8_t {
    none,
    boolean,
    integer,
    real,
    string,
    bytes,
    list,
    tuple,
    dict,
    global,      // text: its module, name: its name in there
    call,        // items: what was to be called (a global, mostly), then its arguments, a tuple
    persistent,  // items: the id by which the pickle's writer names something outside of it
    opaque       // sets and integers beyond 64 bits: there, but of no use here
  };
  Kind kind = Kind::none;
  int64_t integer = 0;  // also boolean: 0 or 1
  double real = 0;
  std::string_view text, name;            // point into the pickle
  std::vector<const PickleValue*> items;  // list, tuple; dict: key, value, key, value ...

  bool is(Kind k) const { return kind == k; }
  bool is_global(std::string_view module, std::string_view n) const {
    return kind == Kind::global && text == module && name == n;
  }
};

// The values of one pickle. Values may be shared and may even contain themselves (lists can): who walks
// them must bound the walk.
class Pickle {
 public:
  // `bytes` must outlive the object; `where` starts every message. Takes at most about 150 bytes of
  // memory a byte, so a pickle may have kMaxBytes; that of a model of 10,000 tensors has 3 MB.
  // Error: anything but one complete pickle of protocol 2 to 5.
  static constexpr size_t kMaxBytes = 32 << 20;
  Pickle(std::span<const std::byte> bytes, const std::string& where);

  const PickleValue& root() const { return *root_; }

 private:
  friend class Unpickler;
  std::deque<PickleValue> values_;
  const PickleValue* root_ = nullptr;
};

}  // namespace krait
