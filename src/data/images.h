// Images, each of a class, or of one that is to be found out.
//
// A source is a folder with a folder for each class, whose name is that of the class, with the images in it or
// below (as torchvision's ImageFolder); or a .jsonl with one object a line: "image", a file beside it, and
// "label", the name or number of its class. Where classes are to be found out, a source is an image, a folder with
// images in it or below, or such a .jsonl, whose labels are not looked at.
//
// An image is a PNG or JPEG, or a .npy: uint8 (H, W, 3), pixels; or float32 (C, size, size), as the model reads
// it. Pixels go through evaluation_image, for training through training_image.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "krait/data/examples.h"
#include "krait/data/image.h"

namespace krait {

struct ImageShape {
  int64_t channels = 3, size = 224;
};

class ImageExamples : public Examples {
 public:
  // `names`: the classes of the model; where there are none, those of the sources (see classes_of). Lists
  // files and reads none of them. Error where a source has no images.
  ImageExamples(const std::vector<std::string>& sources, const ImageShape& shape,
                std::vector<std::string> names, const Augmentation& augmentation = {});
  // Of classes that are to be found out.
  ImageExamples(const std::vector<std::string>& sources, const ImageShape& shape);

  int64_t size() const override { return static_cast<int64_t>(files_.size()); }
  Example read(int64_t i) const override;
  std::string name(int64_t i) const override { return files_[static_cast<size_t>(i)]; }
  // Error where crops are asked for of an array that is not one of pixels.
  Example read_for_training(int64_t i, const Philox& random) const override;
  std::string description() const override;
  uint64_t checksum() const override;

  const std::vector<std::string>& names() const { return names_; }
  int64_t classes() const;                // names, or numbers up to the largest
  void require_classes(int64_t n) const;  // Error naming the first image of a class from n on

 private:
  Example read_image(int64_t i, const Philox* random) const;

  ImageShape shape_;
  Augmentation augmentation_;
  std::vector<std::string> files_;
  std::vector<int32_t> labels_;
  std::vector<std::string> names_;
};

}  // namespace krait
