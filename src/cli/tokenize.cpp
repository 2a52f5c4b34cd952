// krait tokenize: text to ids, and ids to text.
#include <CLI/CLI.hpp>
#include <charconv>
#include <iostream>
#include <iterator>

#include "krait/base/file.h"
#include "krait/base/quote.h"
#include "krait/cli/commands.h"
#include "krait/cli/model_args.h"
#include "krait/data/text.h"
#include "krait/io/npy.h"

namespace krait::cli {

namespace {

struct Args {
  std::string file = "-", tokenizer, out;
  bool special = false, decode = false;
};

std::string read_input(const std::string& file) {
  if (file != "-") return read_file(file);
  return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

// Numbers with spaces, commas or brackets between them.
std::vector<int32_t> parse_numbers(const std::string& text, const std::string& where) {
  std::vector<int32_t> ids;
  const char *p = text.data(), *end = p + text.size();
  for (;;) {
    while (p != end && std::string_view(" \t\r\n,[]").find(*p) != std::string_view::npos) ++p;
    if (p == end) return ids;
    int32_t id = 0;
    const auto [next, error] = std::from_chars(p, end, id);
    require(error == std::errc() && id >= 0, "{}: expected token ids, got {}", where,
            quote(std::string_view(p, static_cast<size_t>(std::min<ptrdiff_t>(end - p, 20)))));
    ids.push_back(id);
    p = next;
  }
}

int run_tokenize(const Args& a, const Common& common) {
  const auto tokenizer = a.tokenizer == "bytes" ? byte_tokenizer() : load_tokenizer(a.tokenizer);
  const std::string from = a.file == "-" ? "stdin" : a.file;
  if (a.decode) {
    const bool npy = a.file.ends_with(".npy");
    const std::vector<int32_t> ids =
        npy ? ids_of(read_npy(a.file).tensors()[0].view, int64_t{1} << 31, a.file)
            : parse_numbers(read_input(a.file), from);
    // The decoder, as that of models, leaves out what it does not know.
    for (size_t i = 0; i < ids.size(); ++i)
      require(tokenizer->token(ids[i]).has_value(), "{}: id {} is {}, and no token has that id",
              from, i, ids[i]);
    const std::string text = tokenizer->decode(ids);
    if (common.json) {
      print_json({{"text", text}});
    } else {
      print(text);
    }
    return kDone;
  }
  const std::string text = read_input(a.file);
  if (a.tokenizer != "bytes") check_utf8(text, from);
  std::vector<int32_t> ids = tokenizer->encode(text, a.special);
  if (!a.out.empty()) {
    write_npy(a.out, Tensor(ids.data(), DType::i32, {static_cast<int64_t>(ids.size())}));
    if (common.json) print_json({{"out", a.out}, {"tokens", ids.size()}});
  } else if (common.json) {
    print_json({{"tokens", ids}});
  } else {
    print_line("{}", fmt::join(ids, " "));
  }
  return kDone;
}

}  // namespace

Work add_tokenize(CLI::App& app) {
  const auto a = std::make_shared<Args>();
  app.add_option("FILE", a->file, "text, read as it is; default: stdin");
  app.add_option("--tokenizer", a->tokenizer, "a tokenizer.json, or bytes")->required();
  app.add_option("--out", a->out, "write the ids: .npy int32");
  app.add_flag("--special", a->special, "add the special tokens of the tokenizer's template");
  app.add_flag("--decode", a->decode, "ids (.npy, or numbers) to text, nothing added");
  return [a](const Common& common) {
    if (a->decode && (a->special || !a->out.empty()))
      throw Usage("--decode does not go with --special or --out");
    return run_tokenize(*a, common);
  };
}

}  // namespace krait::cli
