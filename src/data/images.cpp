#include "krait/data/images.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "krait/base/file.h"
#include "krait/base/file_name.h"
#include "krait/base/hash.h"
#include "krait/data/labels.h"
#include "krait/data/text.h"
#include "krait/io/npy.h"

namespace krait {

namespace fs = std::filesystem;

namespace {

bool is_image(const fs::path& path) {
  static constexpr std::array kEndings = {".png", ".jpg", ".jpeg", ".npy"};
  return std::find(kEndings.begin(), kEndings.end(), ending_of(path)) != kEndings.end();
}

bool hidden(const fs::path& path) { return path.filename().native().starts_with('.'); }

// What stands in a folder, in name order.
std::vector<fs::path> entries(const fs::path& folder) {
  std::vector<fs::path> all;
  std::error_code ec;
  for (fs::directory_iterator it(folder, ec), end; !ec && it != end; it.increment(ec))
    if (!hidden(it->path())) all.push_back(it->path());
  require(!ec, "cannot list {}: {}", folder.string(), ec.message());
  std::sort(all.begin(), all.end());
  return all;
}

struct Listing {
  bool labelled = true;
  std::vector<std::string> files;
  std::vector<Answer> answers;

  void add(const fs::path& file, Answer answer) {
    files.push_back(file.string());
    answers.push_back(std::move(answer));
  }

  void add_class(const fs::path& folder, const std::string& name) {
    for (const fs::path& entry : entries(folder)) {
      std::error_code none;  // of links that lead nowhere
      if (fs::is_directory(entry, none)) add_class(entry, name);
      if (fs::is_regular_file(entry, none) && is_image(entry))
        add(entry, {entry.string(), name, -1});
    }
  }

  void add_sources(const std::vector<std::string>& sources) {
    for (const std::string& source : sources) {
      const size_t before = files.size();
      add_source(source);
      require(files.size() > before, "{}: no images in it: expected PNG, JPEG or .npy files{}",
              source, labelled ? " in a folder for each class" : "");
    }
  }

  void add_source(const std::string& source) {
    if (fs::is_directory(source)) {
      if (!labelled) return add_class(source, "");
      for (const fs::path& entry : entries(source))
        if (std::error_code none; fs::is_directory(entry, none))
          add_class(entry, entry.filename().string());
      return;
    }
    if (!labelled && is_image(source)) return add(source, {});
    require(
        fs::path(source).extension() == ".jsonl", "{}: expected images: {} in each line", source,
        labelled ? "a folder with a folder for each class, or a .jsonl with \"image\" and \"label\""
                 : "PNG, JPEG or .npy files, a folder of them, or a .jsonl with \"image\"");
    read_json_lines(read_file(source), source, [&](const JsonView& line) {
      add(fs::path(source).parent_path() / line.text("image"),
          labelled ? read_answer(line) : Answer{});
    });
  }
};

}  // namespace

ImageExamples::ImageExamples(const std::vector<std::string>& sources, const ImageShape& shape,
                             std::vector<std::string> names, const Augmentation& augmentation)
    : shape_(shape), augmentation_(augmentation), names_(std::move(names)) {
  Listing list;
  list.add_sources(sources);
  labels_ = classes_of(list.answers, names_);
  files_ = std::move(list.files);
}

ImageExamples::ImageExamples(const std::vector<std::string>& sources, const ImageShape& shape)
    : shape_(shape) {
  Listing list;
  list.labelled = false;
  list.add_sources(sources);
  files_ = std::move(list.files);
  labels_.assign(files_.size(), -1);
}

Example ImageExamples::read(int64_t i) const { return read_image(i, nullptr); }

Example ImageExamples::read_for_training(int64_t i, const Philox& random) const {
  return read_image(i, &random);
}

// `random`: of training; null: as evaluation reads it.
Example ImageExamples::read_image(int64_t i, const Philox* random) const {
  const std::string& file = files_[static_cast<size_t>(i)];
  Example e;
  e.label = labels_[static_cast<size_t>(i)];
  e.shape = {shape_.channels, shape_.size, shape_.size};
  Pixels pixels;
  if (fs::path(file).extension() == ".npy") {
    const TensorFile array = read_npy(file);
    const Tensor t = array.tensors().front().view;
    if (t.dtype == DType::f32 && t.shape == e.shape) {
      require(!random || augmentation_.crop_scale == 1,
              "{}: float32 values are read as they are, --crop-scale needs pixels: PNG, JPEG or "
              "uint8 (H, W, 3)",
              file);
      e.values.assign(t.as<float>(), t.as<float>() + t.numel());
      require_finite(e, file);
      if (random && flips(augmentation_, *random)) flip(e.values, shape_.size);
      return e;
    }
    require(t.dtype == DType::u8 && t.rank() == 3 && t.size(2) == 3 && t.numel() > 0 &&
                t.numel() / 3 <= kMaxPixels,
            "{}: expected pixels as uint8 (H, W, 3), or float32 {}, got {} {}", file, e.shape,
            name_of(t.dtype), t.shape);
    pixels = {t.size(0), t.size(1), {t.as<uint8_t>(), t.as<uint8_t>() + t.numel()}};
  } else {
    pixels = parse_picture(MappedFile(file).bytes(), file);
  }
  require(shape_.channels == 3, "{}: pixels have 3 channels, and the model reads {}", file,
          shape_.channels);
  e.values = random ? training_image(pixels, shape_.size, augmentation_, *random)
                    : evaluation_image(pixels, shape_.size);
  return e;
}

std::string ImageExamples::description() const {
  std::string text = fmt::format("{} images of {} classes", size(), classes());
  if (augmentation_.crop_scale < 1)
    text += fmt::format(", crops of {} of the area or more", augmentation_.crop_scale);
  if (augmentation_.hflip > 0) text += fmt::format(", {} of them flipped", augmentation_.hflip);
  return text;
}

uint64_t ImageExamples::checksum() const {
  Hash sum;
  for (size_t i = 0; i < files_.size(); ++i) {
    const std::string file = fs::path(files_[i]).filename().string();
    sum.add(file.data(), file.size());
    sum.add_word(static_cast<uint32_t>(labels_[i]));
  }
  return sum.h;
}

int64_t ImageExamples::classes() const {
  if (!names_.empty()) return static_cast<int64_t>(names_.size());
  return 1 + *std::max_element(labels_.begin(), labels_.end());
}

void ImageExamples::require_classes(int64_t n) const {
  for (size_t i = 0; i < labels_.size(); ++i)
    require(labels_[i] < n, "{}: its class is {}, and the model has {}", files_[i], labels_[i], n);
}

}  // namespace krait
