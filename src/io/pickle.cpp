#include "krait/io/pickle.h"

#include <bit>
#include <cstring>
#include <unordered_map>

#include "krait/base/error.h"
#include "krait/base/quote.h"

namespace krait {

using Kind = PickleValue::Kind;

// The pickle machine: opcodes that push, collect and store values on one stack. `marks_` holds the
// heights of the stack at each MARK that is still open.
class Unpickler {
 public:
  Unpickler(std::span<const std::byte> bytes, const std::string& where, Pickle& out)
      : bytes_(bytes), where_(where), values_(out.values_) {}

  const PickleValue* run();

 private:
  [[noreturn]] void wrong(std::string_view what) const {
    fail("{}: pickle, byte {}: {}", where_, opcode_at_, what);
  }
  void check(bool ok, std::string_view what) const {
    if (!ok) [[unlikely]]
      wrong(what);
  }

  // Reading.
  std::string_view take(uint64_t n) {
    check(n <= bytes_.size() - at_, "the pickle is cut off");
    const char* data = reinterpret_cast<const char*>(bytes_.data()) + at_;
    at_ += n;
    return {data, n};
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view line() {
    const char* data = reinterpret_cast<const char*>(bytes_.data()) + at_;
    const void* end = std::memchr(data, '\n', bytes_.size() - at_);
    check(end != nullptr, "the pickle is cut off");
    const std::string_view text = take(static_cast<size_t>(static_cast<const char*>(end) - data));
    take(1);
    return text;
  }

  // The stack.
  PickleValue& make(Kind kind) {
    PickleValue& v = values_.emplace_back();
    v.kind = kind;
    stack_.push_back(&v);
    return v;
  }
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  PickleValue* top() {
    check(stack_.size() > floor(), "the stack is empty");
    return stack_.back();
  }
  PickleValue* pop() {
    PickleValue* v = top();
    stack_.pop_back();
    return v;
  }
  std::vector<const PickleValue*> pop_to_mark() {
    check(!marks_.empty(), "no mark on the stack");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<const PickleValue*> items(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return items;
  }

  void text(Kind kind, uint64_t n) { make(kind).text = take(n); }
  void integer(int64_t value) { make(Kind::integer).integer = value; }
  void boolean(bool value) { make(Kind::boolean).integer = value; }
  void big_integer(uint64_t n);
  void collect(Kind kind, size_t n);
  void collect_to_mark(Kind kind) {
    auto items = pop_to_mark();
    check(kind != Kind::dict || items.size() % 2 == 0, "a dict with a key but no value");
    make(kind).items = std::move(items);
  }
  void append(const std::vector<const PickleValue*>& items);
  void set_items(const std::vector<const PickleValue*>& pairs);
  void global(std::string_view module, std::string_view name);
  void call(size_t arguments);
  void put(uint64_t index) { memo_[index] = top(); }
  void get(uint64_t index) {
    const auto it = memo_.find(index);
    check(it != memo_.end(), "a memo that was never stored");
    stack_.push_back(it->second);
  }
  void step(uint8_t opcode);

  std::span<const std::byte> bytes_;
  const std::string& where_;
  std::deque<PickleValue>& values_;
  std::vector<PickleValue*> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint64_t, PickleValue*> memo_;
  size_t at_ = 0, opcode_at_ = 0;
};

// A two's complement number of n bytes, lowest first.
void Unpickler::big_integer(uint64_t n) {
  const std::string_view bytes = take(n);
  if (n > sizeof(int64_t)) {
    make(Kind::opaque);
    return;
  }
  uint64_t value = !bytes.empty() && (bytes.back() & 0x80) ? ~uint64_t{0} : 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  integer(static_cast<int64_t>(value));
}

void Unpickler::collect(Kind kind, size_t n) {
  std::vector<const PickleValue*> items(n);
  for (size_t i = n; i-- > 0;) items[i] = pop();
  make(kind).items = std::move(items);
}

// Values of unknown classes take what is put into them and forget it.
void Unpickler::append(const std::vector<const PickleValue*>& items) {
  PickleValue* list = top();
  if (list->is(Kind::call) || list->is(Kind::opaque)) return;
  check(list->is(Kind::list), "items for what is not a list");
  list->items.insert(list->items.end(), items.begin(), items.end());
}

void Unpickler::set_items(const std::vector<const PickleValue*>& pairs) {
  check(pairs.size() % 2 == 0, "a key without a value");
  PickleValue* dict = top();
  if (dict->is(Kind::call) || dict->is(Kind::opaque)) return;
  check(dict->is(Kind::dict), "keys for what is not a dict");
  dict->items.insert(dict->items.end(), pairs.begin(), pairs.end());
}

void Unpickler::global(std::string_view module, std::string_view name) {
  PickleValue& v = make(Kind::global);
  v.text = module;
  v.name = name;
}

// What lies on the stack is a callable and then `arguments` values; only OrderedDict() is understood,
// as the dict that it is.
void Unpickler::call(size_t arguments) {
  collect(Kind::call, 1 + arguments);
  PickleValue* v = stack_.back();
  if (v->items[0]->is_global("collections", "OrderedDict") && v->items[1]->is(Kind::tuple) &&
      v->items[1]->items.empty()) {
    v->kind = Kind::dict;
    v->items.clear();
  }
}

void Unpickler::step(uint8_t opcode) {
  switch (opcode) {
    case 0x80: check(number<uint8_t>() <= 5, "a protocol above 5"); break;
    case 0x95:
      check(number<uint64_t>() <= bytes_.size() - at_, "a frame larger than the pickle");
      break;
    case '(': marks_.push_back(stack_.size()); break;
    case '0':
      if (stack_.size() == floor() && !marks_.empty())
        marks_.pop_back();
      else
        pop();
      break;
    case '1': pop_to_mark(); break;
    case '2': stack_.push_back(top()); break;
    case 'N': make(Kind::none); break;
    case 0x88: boolean(true); break;
    case 0x89: boolean(false); break;
    case 'J': integer(number<int32_t>()); break;
    case 'K': integer(number<uint8_t>()); break;
    case 'M': integer(number<uint16_t>()); break;
    case 0x8a: big_integer(number<uint8_t>()); break;
    case 0x8b: big_integer(number<uint32_t>()); break;
    case 'G':
      make(Kind::real).real = std::bit_cast<double>(__builtin_bswap64(number<uint64_t>()));
      break;
    case 'X': text(Kind::string, number<uint32_t>()); break;
    case 0x8c: text(Kind::string, number<uint8_t>()); break;
    case 0x8d: text(Kind::string, number<uint64_t>()); break;
    case 'U': text(Kind::string, number<uint8_t>()); break;
    case 'T': text(Kind::string, number<uint32_t>()); break;
    case 'B': text(Kind::bytes, number<uint32_t>()); break;
    case 'C': text(Kind::bytes, number<uint8_t>()); break;
    case 0x8e:
    case 0x96: text(Kind::bytes, number<uint64_t>()); break;
    case ']': make(Kind::list); break;
    case '}': make(Kind::dict); break;
    case ')': make(Kind::tuple); break;
    case 0x85: collect(Kind::tuple, 1); break;
    case 0x86: collect(Kind::tuple, 2); break;
    case 0x87: collect(Kind::tuple, 3); break;
    case 't': collect_to_mark(Kind::tuple); break;
    case 'l': collect_to_mark(Kind::list); break;
    case 'd': collect_to_mark(Kind::dict); break;
    case 0x8f: make(Kind::opaque); break;  // an empty set
    case 0x91: collect_to_mark(Kind::opaque); break;
    case 0x90:
    case 'e': append(pop_to_mark()); break;
    case 'a': append({pop()}); break;
    case 's': {
      const PickleValue* value = pop();
      set_items({pop(), value});
      break;
    }
    case 'u': set_items(pop_to_mark()); break;
    case 'q': put(number<uint8_t>()); break;
    case 'r': put(number<uint32_t>()); break;
    case 0x94: put(memo_.size()); break;
    case 'h': get(number<uint8_t>()); break;
    case 'j': get(number<uint32_t>()); break;
    case 'c': {
      const std::string_view module = line();
      global(module, line());
      break;
    }
    case 0x93: {
      const PickleValue* name = pop();
      const PickleValue* module = pop();
      check(name->is(Kind::string) && module->is(Kind::string),
            "a global whose name is not a string");
      global(module->text, name->text);
      break;
    }
    case 'R':
    case 0x81: call(1); break;  // function(*arguments), class.__new__(class, *arguments)
    case 0x92: call(2); break;  // the same with arguments by name
    case 'b':
      pop();
      top();
      break;  // the state of an object
    case 'Q': collect(Kind::persistent, 1); break;
    default: wrong(fmt::format("opcode {:#04x} is none of protocol 2 to 5", opcode));
  }
}

const PickleValue* Unpickler::run() {
  check(!bytes_.empty() && std::to_integer<uint8_t>(bytes_[0]) == 0x80 && bytes_.size() > 1 &&
            std::to_integer<uint8_t>(bytes_[1]) >= 2,
        "expected a pickle of protocol 2 to 5");
  check(bytes_.size() <= Pickle::kMaxBytes, "larger than 32 MB");
  for (;;) {
    opcode_at_ = at_;
    const auto opcode = number<uint8_t>();
    if (opcode == '.') break;
    step(opcode);
  }
  check(marks_.empty() && stack_.size() == 1, "expected one value at the end");
  check(at_ == bytes_.size(), "bytes follow the end");
  return stack_.back();
}

Pickle::Pickle(std::span<const std::byte> bytes, const std::string& where) {
  root_ = Unpickler(bytes, where, *this).run();
}

}  // namespace krait
