#include "krait/io/image_file.h"

#include <png.h>
#include <turbojpeg.h>

#include <algorithm>
#include <memory>
#include <string_view>

#include "krait/base/error.h"

namespace krait {

namespace {

// The memory that the pixels will take is bounded before any of it is taken.
Pixels make_pixels(int64_t H, int64_t W, const std::string& where) {
  require(H > 0 && W > 0 && H <= kMaxPixels / W, "{}: {} x {} pixels; at most {} are read", where,
          W, H, kMaxPixels);
  return {H, W, std::vector<uint8_t>(static_cast<size_t>(3 * H * W))};
}

struct PngImage : png_image {
  PngImage() : png_image{} { version = PNG_IMAGE_VERSION; }
  ~PngImage() { png_image_free(this); }
};

Pixels parse_png(std::span<const std::byte> bytes, const std::string& where) {
  PngImage png;
  const auto check = [&](int ok) {
    require(ok != 0 && !PNG_IMAGE_FAILED(png), "{}: not a whole PNG: {}", where, png.message);
  };
  check(png_image_begin_read_from_memory(&png, bytes.data(), bytes.size()));
  Pixels p = make_pixels(png.height, png.width, where);
  if (!(png.format & PNG_FORMAT_FLAG_ALPHA)) {
    png.format = PNG_FORMAT_RGB;
    check(png_image_finish_read(&png, nullptr, p.rgb.data(), 0, nullptr));
    return p;
  }
  png.format = PNG_FORMAT_RGBA;
  std::vector<uint8_t> rgba(p.rgb.size() / 3 * 4);
  check(png_image_finish_read(&png, nullptr, rgba.data(), 0, nullptr));
  for (size_t i = 0; i < p.rgb.size() / 3; ++i) std::copy_n(&rgba[4 * i], 3, &p.rgb[3 * i]);
  return p;
}

// Inks of a print, stored as what they leave of the light (Adobe's convention), as Pillow makes colours of them.
void mix_inks(const std::vector<uint8_t>& cmyk, std::vector<uint8_t>& rgb) {
  for (size_t i = 0; i < rgb.size() / 3; ++i) {
    const int key = cmyk[4 * i + 3];
    for (size_t k = 0; k < 3; ++k) {
      const int dark = (255 - cmyk[4 * i + k]) * key + 128;  // 255 times what the ink takes away
      rgb[3 * i + k] = static_cast<uint8_t>(key - ((dark + (dark >> 8)) >> 8));
    }
  }
}

Pixels parse_jpeg(std::span<const std::byte> bytes, const std::string& where) {
  const std::unique_ptr<void, int (*)(tjhandle)> jpeg(tjInitDecompress(), tjDestroy);
  require(jpeg != nullptr, "{}: {}", where, tjGetErrorStr2(nullptr));
  const auto* const data = reinterpret_cast<const unsigned char*>(bytes.data());
  const auto size = static_cast<unsigned long>(bytes.size());
  // Decoders of photographs live with small damage, such as a few bytes too many between two markers.
  const auto check = [&](int result) {
    const std::string_view message = tjGetErrorStr2(jpeg.get());
    const bool usable = tjGetErrorCode(jpeg.get()) == TJERR_WARNING &&
                        message.find("Premature end") == std::string_view::npos;
    require(result == 0 || usable, "{}: not a whole JPEG: {}", where, message);
  };
  int W = 0, H = 0, sampling = 0, colours = 0;
  check(tjDecompressHeader3(jpeg.get(), data, size, &W, &H, &sampling, &colours));
  Pixels p = make_pixels(H, W, where);
  const auto decompress = [&](std::vector<uint8_t>& to, TJPF format) {
    check(tjDecompress2(jpeg.get(), data, size, to.data(), W, 0, H, format,
                        TJFLAG_ACCURATEDCT | TJFLAG_LIMITSCANS));
  };
  if (colours != TJCS_CMYK && colours != TJCS_YCCK) {
    decompress(p.rgb, TJPF_RGB);
    return p;
  }
  std::vector<uint8_t> cmyk(p.rgb.size() / 3 * 4);
  decompress(cmyk, TJPF_CMYK);
  mix_inks(cmyk, p.rgb);
  return p;
}

bool starts_with(std::span<const std::byte> bytes, std::string_view head) {
  return bytes.size() >= head.size() &&
         std::equal(head.begin(), head.end(), reinterpret_cast<const char*>(bytes.data()));
}

}  // namespace

Pixels parse_picture(std::span<const std::byte> bytes, const std::string& where) {
  if (starts_with(bytes, "\x89PNG\r\n\x1a\n")) return parse_png(bytes, where);
  if (starts_with(bytes, "\xff\xd8\xff")) return parse_jpeg(bytes, where);
  fail("{}: expected a picture, PNG or JPEG", where);
}

}  // namespace krait
