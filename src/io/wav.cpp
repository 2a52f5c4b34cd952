#include "krait/io/wav.h"

#include <cstring>

#include "krait/base/error.h"

namespace krait {

namespace {

// What the chunk "fmt " says. Tags: of the file format's registry.
struct Format {
  static constexpr int64_t kWhole = 1, kFloat = 3, kExtensible = 0xfffe;

  int64_t tag = 0, channels = 0, rate = 0, bits = 0;

  bool known() const {
    if (tag == kFloat) return bits == 32;
    return tag == kWhole && (bits == 8 || bits == 16 || bits == 24 || bits == 32);
  }
};

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& where)
      : bytes_(bytes), where_(where) {}

  Sound read() {
    need(12);
    require(name(0) == "RIFF" && name(8) == "WAVE", "{}: not a WAVE file", where_);
    at_ = 12;
    Format format;
    while (true) {
      need(8);
      const std::string chunk = name(at_);
      size_t size = static_cast<size_t>(number(at_ + 4, 4));
      at_ += 8;
      if (chunk == "data") {
        require(format.channels > 0, "{}: samples before their format", where_);
        // What is written to a pipe does not know its size.
        if (size == 0xffffffff) size = bytes_.size() - at_;
        need(size);
        return samples(format, size);
      }
      need(size);
      if (chunk == "fmt ") format = read_format(size);
      at_ += size + size % 2;
    }
  }

 private:
  void need(size_t n) const {
    require(at_ <= bytes_.size() && n <= bytes_.size() - at_, "{}: not a whole WAVE file", where_);
  }
  std::string name(size_t at) const {
    return {reinterpret_cast<const char*>(bytes_.data()) + at, 4};
  }
  int64_t number(size_t at, size_t size) const {
    int64_t n = 0;
    for (size_t i = 0; i < size; ++i) n |= static_cast<int64_t>(bytes_[at + i]) << (8 * i);
    return n;
  }

  Format read_format(size_t size) const {
    require(size >= 16, "{}: its format: expected 16 bytes or more, got {}", where_, size);
    Format f{number(at_, 2), number(at_ + 2, 2), number(at_ + 4, 4), number(at_ + 14, 2)};
    if (f.tag == Format::kExtensible && size >= 26) f.tag = number(at_ + 24, 2);
    require(f.known() && f.channels > 0,
            "{}: expected whole numbers of 8, 16, 24 or 32 bits, or float32, got format {} with {} "
            "bits and {} channels",
            where_, f.tag, f.bits, f.channels);
    return f;
  }

  Sound samples(const Format& f, size_t size) const {
    Sound sound{f.channels, f.rate, {}};
    const size_t width = static_cast<size_t>(f.bits / 8);
    const size_t n = size / width / static_cast<size_t>(f.channels);
    sound.samples.resize(n * static_cast<size_t>(f.channels));
    for (size_t i = 0; i < sound.samples.size(); ++i) {
      const int64_t raw = number(at_ + i * width, width);
      sound.samples[i] = f.tag == Format::kFloat ? as_float(raw) : scaled(raw, f.bits);
    }
    return sound;
  }
  static float as_float(int64_t raw) {
    const auto bits = static_cast<uint32_t>(raw);
    float x = 0;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  // Of 8 bits the middle is 128, others are signed.
  static float scaled(int64_t raw, int64_t bits) {
    const int64_t half = int64_t{1} << (bits - 1);
    if (bits == 8) raw -= half;
    if (bits > 8 && raw >= half) raw -= 2 * half;
    return static_cast<float>(static_cast<double>(raw) / static_cast<double>(half));
  }

  std::span<const std::byte> bytes_;
  const std::string& where_;
  size_t at_ = 0;
};

}  // namespace

Sound parse_wav(std::span<const std::byte> bytes, const std::string& where) {
  return Reader(bytes, where).read();
}

}  // namespace krait
