#include "krait/data/text.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <vector>

#include "krait/base/error.h"
#include "krait/base/file.h"
#include "krait/base/json.h"
#include "krait/base/log.h"
#include "krait/io/tokenizer/unicode.h"

namespace krait {

namespace fs = std::filesystem;

namespace {

void read_text(std::string_view text, const std::string& name, const DocumentSink& sink) {
  check_utf8(text, name);
  sink(text, name);
}

void read_one_file(const fs::path& path, const DocumentSink& sink) {
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  if (path.extension() == ".jsonl") {
    read_jsonl(text, path.string(), sink);
  } else {
    read_text(text, path.string(), sink);
  }
}

bool looks_binary(const fs::path& path) {
  const MappedFile file(path);
  const auto head = file.bytes().first(std::min<size_t>(file.bytes().size(), 8192));
  return std::find(head.begin(), head.end(), std::byte{0}) != head.end();
}

void read_folder(const fs::path& folder, const DocumentSink& sink) {
  std::vector<fs::path> files;
  std::error_code ec;
  for (fs::directory_iterator it(folder, ec), end; !ec && it != end; it.increment(ec))
    if (std::error_code none;
        it->is_regular_file(none) && it->path().filename().native().front() != '.')
      files.push_back(it->path());
  require(!ec, "cannot list {}: {}", folder.string(), ec.message());
  std::sort(files.begin(), files.end());
  size_t read = 0;
  for (const fs::path& file : files) {
    if (looks_binary(file)) {
      spdlog::warn("{} is not text: skipped", file.string());
      continue;
    }
    read_one_file(file, sink);
    ++read;
  }
  require(read > 0, "{}: no text file in this folder", folder.string());
}

}  // namespace

void read_jsonl(std::string_view text, const std::string& name, const DocumentSink& sink) {
  read_json_lines(text, name, [&](const JsonView& line) { sink(line.text("text"), line.where()); });
}

void check_utf8(std::string_view text, const std::string& where) {
  require(!text.starts_with("\x1f\x8b"), "{}: expected text, got a gzip file: unpack it first",
          where);
  const char* const end = text.data() + text.size();
  for (const char* p = text.data(); p != end;) {
    const unicode::Step step = unicode::next_step(p, end);
    if (step.form != unicode::Form::valid)
      fail("{}:{}: expected UTF-8 text, got the byte 0x{:02x} at offset {}", where,
           1 + std::count(text.data(), p, '\n'), static_cast<unsigned char>(*p), p - text.data());
    p += step.length;
  }
}

void read_documents(const std::string& source, const DocumentSink& sink) {
  if (source == "-") {
    const std::string text(std::istreambuf_iterator<char>(std::cin), {});
    read_text(text, "stdin", sink);
  } else if (fs::is_directory(source)) {
    read_folder(source, sink);
  } else {
    read_one_file(source, sink);
  }
}

}  // namespace krait
