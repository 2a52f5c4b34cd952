// PyTorch's files of tensors (pytorch_model.bin, .pt, .pth): a zip archive of a pickle and of one raw
// entry a storage, as torch.save has written them since version 1.6.
//
// Read without running any of it: the pickle may build dicts, lists, tuples, strings, numbers and
// tensors; every other class or function in it (optimizers, argparse.Namespace, os.system) is passed
// over. Storages are used where they lie in the memory map, so reading takes no longer for a larger
// file; tensors that share a storage (tied weights) have the same data pointer. Strides are kept: a
// tensor may be non-contiguous.
#pragma once
#include <filesystem>
#include <span>
#include <string>

#include "krait/io/tensor_file.h"

namespace krait {

// The tensors of the dict in the file, or of the dict that is its entry `key` ("model", "model_ema").
// Without a key: the outermost dict if it has tensors of its own, else its "model" or "state_dict", else
// all of it. Dicts inside become names with dots; "module." and "_orig_mod.", which DistributedDataParallel and
// torch.compile put before every name, are left out.
// Error: no such file, a file from before torch 1.6, a big-endian one, no tensors, or a tensor among
// them that is sparse, quantised, of another type than Krait's, of more than kMaxRank axes, or outside
// of its storage.
TensorFile read_torch_archive(const std::filesystem::path& path, const std::string& key = "");

// The same from memory, which must outlive the result; `where` starts every message.
TensorFile parse_torch_archive(std::span<const std::byte> bytes, const std::string& where,
                               const std::string& key = "");

// Writes an OrderedDict of tensors that torch.load(path, weights_only=True) reads, each as torch.float32,
// .float16, ...; all or nothing (see FileWriter). Tensors of the same memory, type, shape and strides
// share a storage. Non-contiguous ones are written contiguous.
void write_torch_archive(const std::filesystem::path& path, std::span<const NamedTensor> tensors);

}  // namespace krait
