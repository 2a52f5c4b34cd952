#include "krait/io/sound_file.h"

#include <sndfile.h>

#include <memory>

#include "krait/base/error.h"
#include "krait/base/file_name.h"

namespace krait {

bool is_sound(const std::filesystem::path& file) {
  const std::string extension = ending_of(file);
  return extension == ".wav" || extension == ".flac" || extension == ".ogg";
}

Sound read_sound(const std::filesystem::path& file) {
  // read at a time: the number of frames that a damaged file states may be anything
  constexpr sf_count_t kFrames = 1 << 14;
  require(std::filesystem::exists(file), "{}: no such file", file.string());
  SF_INFO info = {};
  const std::unique_ptr<SNDFILE, decltype(&sf_close)> sound(sf_open(file.c_str(), SFM_READ, &info),
                                                            sf_close);
  require(sound != nullptr, "{}: not a sound that can be read: {}", file.string(),
          sf_strerror(nullptr));
  Sound s{info.channels, info.samplerate, {}};
  const auto C = static_cast<size_t>(info.channels);
  for (sf_count_t got = kFrames; got == kFrames;) {
    const size_t before = s.samples.size();
    s.samples.resize(before + C * kFrames);
    got = sf_readf_float(sound.get(), s.samples.data() + before, kFrames);
    s.samples.resize(before + C * static_cast<size_t>(got));
  }
  require(sf_error(sound.get()) == SF_ERR_NO_ERROR, "{}: a damaged sound: {}", file.string(),
          sf_strerror(sound.get()));
  return s;
}

}  // namespace krait
