#include "krait/io/image_file.h"

#include <gtest/gtest.h>
#include <png.h>
#include <turbojpeg.h>

#include <cstring>

#include "krait/base/error.h"
#include "krait/testing/files.h"

namespace krait {
namespace {

using testing::error_of;

std::vector<uint8_t> colours(int64_t H, int64_t W, int channels) {
  std::vector<uint8_t> p;
  for (int64_t y = 0; y < H; ++y)
    for (int64_t x = 0; x < W; ++x)
      for (int k = 0; k < channels; ++k)
        p.push_back(static_cast<uint8_t>((y * 40 + x * 7 + k * 90) % 256));
  return p;
}

std::vector<std::byte> png_of(int64_t H, int64_t W, png_uint_32 format) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.height = static_cast<png_uint_32>(H);
  png.width = static_cast<png_uint_32>(W);
  png.format = format;
  const auto pixels = colours(H, W, static_cast<int>(PNG_IMAGE_PIXEL_CHANNELS(format)));
  png_alloc_size_t size = 0;
  png_image_write_to_memory(&png, nullptr, &size, 0, pixels.data(), 0, nullptr);
  std::vector<std::byte> file(size);
  EXPECT_NE(png_image_write_to_memory(&png, file.data(), &size, 0, pixels.data(), 0, nullptr), 0);
  file.resize(size);
  return file;
}

std::vector<std::byte> jpeg_of(int H, int W, int format, int subsampling) {
  const tjhandle jpeg = tjInitCompress();
  unsigned char* out = nullptr;
  unsigned long size = 0;
  const auto pixels = colours(H, W, tjPixelSize[format]);
  EXPECT_EQ(tjCompress2(jpeg, pixels.data(), W, 0, H, format, &out, &size, subsampling, 95, 0), 0);
  const auto* bytes = reinterpret_cast<const std::byte*>(out);
  std::vector<std::byte> file(bytes, bytes + size);
  tjFree(out);
  tjDestroy(jpeg);
  return file;
}

TEST(Pictures, PngOfColoursIsExact) {
  const Pixels p = parse_picture(png_of(5, 9, PNG_FORMAT_RGB), "f");
  EXPECT_EQ(p.H, 5);
  EXPECT_EQ(p.W, 9);
  EXPECT_EQ(p.rgb, colours(5, 9, 3));
}

TEST(Pictures, PngOfGreyBecomesColourAndTransparencyIsDropped) {
  const Pixels grey = parse_picture(png_of(4, 6, PNG_FORMAT_GRAY), "f");
  const auto values = colours(4, 6, 1);
  for (size_t i = 0; i < values.size(); ++i)
    for (size_t k = 0; k < 3; ++k) EXPECT_EQ(grey.rgb[3 * i + k], values[i]);
  const Pixels clear = parse_picture(png_of(4, 6, PNG_FORMAT_RGBA), "f");
  const auto rgba = colours(4, 6, 4);
  for (size_t i = 0; i < 24; ++i)
    for (size_t k = 0; k < 3; ++k) EXPECT_EQ(clear.rgb[3 * i + k], rgba[4 * i + k]);
}

TEST(Pictures, JpegIsNearWhatWasWritten) {
  std::vector<uint8_t> flat(16 * 24 * 3);
  for (size_t i = 0; i < flat.size(); ++i) flat[i] = i % 3 == 0 ? 200 : i % 3 == 1 ? 90 : 30;
  const tjhandle jpeg = tjInitCompress();
  unsigned char* out = nullptr;
  unsigned long size = 0;
  ASSERT_EQ(tjCompress2(jpeg, flat.data(), 24, 0, 16, TJPF_RGB, &out, &size, TJSAMP_420, 95, 0), 0);
  const Pixels p = parse_picture({reinterpret_cast<const std::byte*>(out), size}, "f");
  tjFree(out);
  tjDestroy(jpeg);
  ASSERT_EQ(p.H, 16);
  ASSERT_EQ(p.W, 24);
  for (size_t i = 0; i < flat.size(); ++i) EXPECT_NEAR(p.rgb[i], flat[i], 4);
}

// Some photographs of ImageNet are stored as the inks of a print. Expected: what Pillow 13 makes of such pixels.
TEST(Pictures, InksOfAPrintBecomeColours) {
  const uint8_t inks[4] = {40, 130, 255, 200};
  std::vector<uint8_t> flat;
  for (int i = 0; i < 16 * 16; ++i) flat.insert(flat.end(), inks, inks + 4);
  const tjhandle jpeg = tjInitCompress();
  unsigned char* out = nullptr;
  unsigned long size = 0;
  ASSERT_EQ(tjCompress2(jpeg, flat.data(), 16, 0, 16, TJPF_CMYK, &out, &size, TJSAMP_444, 100, 0),
            0);
  const Pixels p = parse_picture({reinterpret_cast<const std::byte*>(out), size}, "f");
  tjFree(out);
  tjDestroy(jpeg);
  const uint8_t expected[3] = {31, 102, 200};
  for (size_t i = 0; i < p.rgb.size(); ++i) EXPECT_NEAR(p.rgb[i], expected[i % 3], 2);
}

// Files cut anywhere are refused; nothing is made up for what is missing.
TEST(Pictures, CutFilesAreRefused) {
  for (const auto& file : {png_of(12, 12, PNG_FORMAT_RGB), jpeg_of(24, 24, TJPF_RGB, TJSAMP_444),
                           jpeg_of(24, 24, TJPF_CMYK, TJSAMP_444)})
    for (size_t n = 0; n + 16 < file.size(); ++n)
      EXPECT_THROW(parse_picture(std::span(file).first(n), "f"), Error) << n;
}

TEST(Pictures, DamagedFilesNeverDoHarm) {
  for (const auto& file : {png_of(12, 12, PNG_FORMAT_RGB), jpeg_of(24, 24, TJPF_RGB, TJSAMP_420)})
    for (size_t i = 0; i < file.size(); ++i)
      for (const uint8_t change : {0x01, 0x80, 0xff}) {
        std::vector<std::byte> damaged = file;
        damaged[i] ^= std::byte{change};
        error_of([&] {
          const Pixels p = parse_picture(damaged, "f");
          EXPECT_EQ(static_cast<int64_t>(p.rgb.size()), 3 * p.H * p.W);
        });
      }
}

// A header of a few bytes cannot ask for gigabytes.
TEST(Pictures, SizesBeyondTheBoundAreRefusedBeforeMemoryIsTaken) {
  std::vector<std::byte> jpeg = jpeg_of(8, 8, TJPF_RGB, TJSAMP_444);
  for (size_t i = 0; i + 8 < jpeg.size(); ++i)
    if (jpeg[i] == std::byte{0xff} && jpeg[i + 1] == std::byte{0xc0})
      for (size_t k = 5; k < 9; ++k) jpeg[i + k] = std::byte{0xfd};  // 65,021 x 65,021
  EXPECT_NE(error_of([&] { parse_picture(jpeg, "f"); }).find("65021 x 65021 pixels"),
            std::string::npos);
}

TEST(Pictures, OtherFilesAreRefusedByName) {
  const std::string text = "GIF89a";
  EXPECT_EQ(error_of([&] { parse_picture(std::as_bytes(std::span(text)), "cat.gif"); }),
            "cat.gif: expected a picture, PNG or JPEG");
}

}  // namespace
}  // namespace krait
