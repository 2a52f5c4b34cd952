// The safetensors format (https://github.com/huggingface/safetensors): eight bytes of header size, a
// JSON header of name -> {dtype, shape, data_offsets}, the data. One file or a folder of shards.
//
// Types: F32 F16 BF16 F64 I32 I64 U8, and BOOL as u8. A file with a tensor of another type, or of more
// than kMaxRank axes, is refused with that tensor's name. Tensors are contiguous.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

#include "krait/io/tensor_file.h"

namespace krait {

// Reads a file through a memory map; nothing is copied. Tensors come in the order of their data.
// Error: the header is not JSON, a name is there twice, or the tensors do not cover the data exactly,
// without overlap or hole, as the format asks.
TensorFile read_safetensors(const std::filesystem::path& path);

// The same from memory, which must outlive the result; `where` starts every message.
TensorFile parse_safetensors(std::span<const std::byte> bytes, const std::string& where);

// The weights of a model's folder: model.safetensors, or the shards that
// model.safetensors.index.json names, in name order (tensors that the index does not list are left
// out). Error: neither is there, a shard is missing or not a plain file name, a listed tensor is not in
// its shard.
TensorFile read_safetensors_model(const std::filesystem::path& dir);

// The tensors that an index lists ("weight_map": tensor to file), from files beside it that `read` reads. Errors as
// above.
TensorFile read_shards(const std::filesystem::path& index,
                       const std::function<TensorFile(const std::filesystem::path&)>& read);

// Writes tensors of the CPU, of any strides, in the order given; all or nothing (see FileWriter).
void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const Metadata& metadata = {});

constexpr int64_t kMaxShardBytes = 5'000'000'000;  // what Hugging Face writes

// model.safetensors in `dir`, or, above `max_shard_bytes` of data, model-00001-of-0000N.safetensors
// and model.safetensors.index.json. Each file has the metadata {"format": "pt"}, which transformers asks
// for. Each file by itself is all or nothing; for the folder use write_directory.
void write_safetensors_model(const std::filesystem::path& dir, std::span<const NamedTensor> tensors,
                             int64_t max_shard_bytes = kMaxShardBytes);

}  // namespace krait
