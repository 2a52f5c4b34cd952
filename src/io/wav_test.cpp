#include "krait/io/wav.h"

#include <gtest/gtest.h>

#include "krait/testing/files.h"
#include "krait/testing/zip.h"

namespace krait {
namespace {

using testing::as_bytes;
using testing::error_of;
using testing::little;

std::string chunk(const std::string& name, const std::string& data) {
  return name + little(data.size(), 4) + data + std::string(data.size() % 2, '\0');
}

std::string format(uint64_t tag, uint64_t channels, uint64_t bits) {
  return little(tag, 2) + little(channels, 2) + little(8000, 4) + little(0, 4) + little(0, 2) +
         little(bits, 2);
}

std::string wav(const std::string& format, const std::string& data) {
  // A chunk of another kind, of odd length, stands between.
  const std::string all =
      "WAVE" + chunk("fmt ", format) + chunk("LIST", "odd") + chunk("data", data);
  return "RIFF" + little(all.size(), 4) + all;
}

std::vector<float> samples(const std::string& file) {
  return parse_wav(as_bytes(file), "f").samples;
}

TEST(Wav, EveryKindOfNumber) {
  using V = std::vector<float>;
  EXPECT_EQ(samples(wav(format(1, 1, 8), "\x80\xff" + std::string(1, '\0'))),
            (V{0, 127 / 128.0f, -1}));
  EXPECT_EQ(samples(wav(format(1, 1, 16), little(0x4000, 2) + little(0x8000, 2))), (V{0.5f, -1}));
  EXPECT_EQ(samples(wav(format(1, 1, 24), little(0xffffff, 3))), (V{-0x1p-23f}));
  EXPECT_EQ(samples(wav(format(1, 1, 32), little(0xc0000000, 4))), (V{-0.5f}));
  EXPECT_EQ(samples(wav(format(3, 1, 32), little(0x3fc00000, 4))), (V{1.5f}));
  // The tag of an extensible format is the beginning of its GUID.
  const std::string extensible = format(0xfffe, 1, 16) + little(22, 2) + little(16, 2) +
                                 little(4, 4) + little(1, 2) + std::string(14, 'g');
  EXPECT_EQ(samples(wav(extensible, little(0x4000, 2))), (V{0.5f}));
}

TEST(Wav, ChannelsLieSideBySideAndHalfAFrameIsLeftOut) {
  const std::string file = wav(format(1, 2, 8), "\x90\x80\xa0\x80\xb0");
  const Sound sound = parse_wav(as_bytes(file), "f");
  EXPECT_EQ(sound.channels, 2);
  EXPECT_EQ(sound.rate, 8000);
  EXPECT_EQ(sound.samples, (std::vector<float>{0.125f, 0, 0.25f, 0}));
}

TEST(Wav, OfAPipeTheSamplesGoOnToTheEnd) {
  std::string file = wav(format(1, 1, 8), "\x90\xa0");
  file.replace(file.find("data") + 4, 4, "\xff\xff\xff\xff");
  EXPECT_EQ(samples(file), (std::vector<float>{0.125f, 0.25f}));
}

TEST(Wav, WhatIsNoneIsRefusedInWords) {
  const auto message = [](const std::string& file) {
    return error_of([&] { parse_wav(as_bytes(file), "f"); });
  };
  EXPECT_EQ(message("RIFF...."), "f: not a whole WAVE file");
  EXPECT_EQ(message("RIFX....WAVE...."), "f: not a WAVE file");
  EXPECT_NE(message(wav(format(7, 1, 8), "x")).find("got format 7 with 8 bits"), std::string::npos);
  EXPECT_NE(message(wav(format(1, 0, 8), "x")).find("0 channels"), std::string::npos);
  EXPECT_EQ(message("RIFF....WAVE" + chunk("data", "x")), "f: samples before their format");
}

TEST(Wav, DamagedFilesAreReadOrRefused) {
  const std::string file = wav(format(1, 2, 16), "12345678");
  EXPECT_GT(testing::damage(file, [](std::span<const std::byte> bytes) { parse_wav(bytes, "f"); }),
            static_cast<int>(file.size()) / 2);
}

}  // namespace
}  // namespace krait
