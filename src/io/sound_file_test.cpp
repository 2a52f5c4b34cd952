#include "krait/io/sound_file.h"

#include <gtest/gtest.h>
#include <sndfile.h>

#include "krait/base/file.h"
#include "krait/testing/files.h"

namespace krait {
namespace {

using testing::error_of;
using testing::TempDir;

void write_sound(const std::filesystem::path& file, int format, int channels,
                 const std::vector<float>& samples) {
  SF_INFO info = {};
  info.samplerate = 8000, info.channels = channels, info.format = format;
  SNDFILE* const to = sf_open(file.c_str(), SFM_WRITE, &info);
  ASSERT_NE(to, nullptr) << sf_strerror(nullptr);
  const auto frames = static_cast<sf_count_t>(samples.size()) / channels;
  EXPECT_EQ(sf_writef_float(to, samples.data(), frames), frames);
  sf_close(to);
}

TEST(SoundFile, EveryKindGivesTheSamplesThatWereWritten) {
  const TempDir dir;
  const std::vector<float> samples = {0, 0.5f, -1, 0.25f, -0.5f, 0.125f};
  for (const int numbers :
       {SF_FORMAT_PCM_U8, SF_FORMAT_PCM_16, SF_FORMAT_PCM_24, SF_FORMAT_PCM_32, SF_FORMAT_FLOAT}) {
    write_sound(dir / "x.wav", SF_FORMAT_WAV | numbers, 2, samples);
    const Sound s = read_sound(dir / "x.wav");
    EXPECT_EQ(s.channels, 2);
    EXPECT_EQ(s.rate, 8000);
    ASSERT_EQ(s.samples.size(), samples.size());
    // The writer scales by the largest number, the reader by one more.
    for (size_t i = 0; i < samples.size(); ++i)
      EXPECT_NEAR(s.samples[i], samples[i], numbers == SF_FORMAT_PCM_U8 ? 0x1p-7 : 0x1p-15) << i;
  }
  write_sound(dir / "x.flac", SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 1, samples);
  EXPECT_NEAR(read_sound(dir / "x.flac").samples.at(2), -1, 0x1p-15);
}

TEST(SoundFile, ItsNameMayBeInCapitals) {
  for (const char* name : {"a.wav", "A.WAV", "b.Flac", "c.ogg"})
    EXPECT_TRUE(is_sound(name)) << name;
  for (const char* name : {"a.mp3", "wav", "a.wav.txt", ""}) EXPECT_FALSE(is_sound(name)) << name;
}

TEST(SoundFile, ALongSoundComesWhole) {
  const TempDir dir;
  std::vector<float> samples(50000);
  for (size_t i = 0; i < samples.size(); ++i) samples[i] = static_cast<float>(i) * 0x1p-17f;
  write_sound(dir / "x.wav", SF_FORMAT_WAV | SF_FORMAT_FLOAT, 1, samples);
  EXPECT_EQ(read_sound(dir / "x.wav").samples, samples);
}

TEST(SoundFile, WhatIsNoneIsRefusedInWords) {
  const TempDir dir;
  const std::filesystem::path file = dir / "x.wav";
  EXPECT_TRUE(error_of([&] { read_sound(file); }).ends_with("x.wav: no such file"));
  write_file(file, "no sound at all");
  EXPECT_NE(error_of([&] { read_sound(file); }).find("x.wav: not a sound that can be read: "),
            std::string::npos);
}

}  // namespace
}  // namespace krait
