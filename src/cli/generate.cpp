// krait generate: continues prompts. Several prompts are one ragged batch; a state can be read before the
// prompt and saved after the last token, and then stands for everything that was read and written.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <sstream>

#include "krait/base/clock.h"
#include "krait/base/file.h"
#include "krait/base/log.h"
#include "krait/cli/commands.h"
#include "krait/cli/model_args.h"
#include "krait/cli/numbers.h"
#include "krait/cli/progress.h"
#include "krait/infer/generate.h"
#include "krait/infer/state_file.h"

namespace krait::cli {

namespace {

// New tokens that a state which grows has room for from the start.
constexpr int64_t kPlannedTokens = 4096;

struct Args {
  ModelArgs model;
  // The words as typed: CLI11 would read "{}" in a vector as an empty one.
  const CLI::Option *prompts = nullptr, *files = nullptr, *ids = nullptr, *stops = nullptr;
  GenerateOptions generate;
  bool logprobs = false, interactive = false;
  std::string state_in, state_out;
  DType scan_state = DType::f32;
};

std::vector<int32_t> parse_ids(const std::string& text, int64_t vocab_size) {
  std::vector<int32_t> ids;
  std::stringstream in(text);
  for (std::string word; std::getline(in, word, ',');) {
    char* end = nullptr;
    const long long id = std::strtoll(word.c_str(), &end, 10);
    require(!word.empty() && *end == 0, "--prompt-tokens: expected ids like 1,2,3, got {}", text);
    require(id >= 0 && id < vocab_size,
            "--prompt-tokens: token {}: id {} is outside the vocabulary of {}", ids.size(), word,
            vocab_size);
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

std::string read_prompt_file(const std::string& path) {
  if (path != "-") return read_file(path);
  return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

// Everything loaded, and the prompts as ids.
struct Job {
  const Args& a;
  const Common& common;
  LoadedModel loaded;
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<Snapshot> states;  // of --state-in; one row may stand for all prompts
  std::vector<std::vector<int32_t>> prompts;

  Job(const Args& args, const Common& c) : a(args), common(c), loaded(args.model.load(c)) {
    const int64_t vocab = loaded.model->config().vocab_size;
    const bool text =
        !a.prompts->empty() || !a.files->empty() || !a.stops->empty() || a.interactive;
    tokenizer = text ? need_tokenizer(a.model.tokenizer, a.model.model, vocab)
                     : find_tokenizer(a.model.tokenizer, a.model.model, vocab);
    if (!a.state_in.empty()) states = load_state(a.state_in, *loaded.model, loaded.hash);
    for (const std::string& p : a.prompts->results()) prompts.push_back(encode(p));
    for (const std::string& f : a.files->results()) prompts.push_back(encode(read_prompt_file(f)));
    for (const std::string& ids : a.ids->results()) prompts.push_back(parse_ids(ids, vocab));
    if (prompts.empty() && !states.empty()) prompts.resize(states.size());
    require(a.interactive || !prompts.empty(),
            "nothing to continue: give --prompt, --prompt-file, --prompt-tokens or --state-in");
    for (size_t b = 0; b < prompts.size(); ++b)
      require(!prompts[b].empty() || !states.empty(),
              "prompt {} is empty: it needs at least one token", b + 1);
    require(states.size() <= 1 || states.size() == prompts.size(),
            "{}: it holds {} sequences, but there are {} prompts", a.state_in, states.size(),
            prompts.size());
  }

  // Templates (<s> and the like) belong to the start of a sequence.
  std::vector<int32_t> encode(const std::string& text, bool start = true) const {
    return tokenizer->encode(text, start && states.empty());
  }

  GenerateOptions options() const {
    GenerateOptions o = a.generate;
    o.sampler.seed = common.seed;
    o.tokenizer = tokenizer.get();
    o.stop = a.stops->results();
    o.eos = loaded.model->config().eos_ids;
    if (o.eos.empty() && tokenizer)
      if (const auto eos = tokenizer->eos_id()) o.eos.push_back(*eos);
    o.cancelled = [] { return interrupted().load(); };
    return o;
  }

  int64_t prompt_tokens() const {
    int64_t n = 0;
    for (const std::vector<int32_t>& p : prompts) n += static_cast<int64_t>(p.size());
    return n;
  }

  // Tokens of the longest sequence when the prompts are read.
  int64_t longest_start() const {
    int64_t longest = 0;
    for (size_t b = 0; b < std::max(prompts.size(), states.size()); ++b) {
      const int64_t before = states.empty() ? 0 : states[states.size() == 1 ? 0 : b].tokens;
      longest = std::max(
          longest, before + (b < prompts.size() ? static_cast<int64_t>(prompts[b].size()) : 0));
    }
    return longest;
  }

  Session session(size_t batch) const {
    SessionOptions o;
    o.batch = static_cast<int64_t>(batch);
    o.activation = loaded.dtype;
    o.scan_state = a.scan_state;
    o.context = longest_start() + std::min<int64_t>(a.generate.max_new, kPlannedTokens);
    o.after_pass = [progress = std::make_shared<Progress>("prompt tokens", prompt_tokens(),
                                                          common.quiet)](int64_t tokens) {
      progress->add(tokens);
      check_interrupt();
    };
    return Session(*loaded.model, o);
  }
};

// A prompt that is given several times is continued in several ways; each different one as if it were alone.
std::vector<Start> starts_of(const std::vector<std::vector<int32_t>>& prompts) {
  std::vector<Start> starts;
  for (size_t b = 0; b < prompts.size(); ++b) {
    const auto here = prompts.begin() + static_cast<ptrdiff_t>(b);
    starts.push_back(
        {prompts[b], static_cast<uint64_t>(std::count(prompts.begin(), here, prompts[b]))});
  }
  return starts;
}

OrderedJson to_json(const Generated& g, size_t prompt_tokens, double prefill_s, double decode_s,
                    bool logprobs) {
  OrderedJson j = {{"tokens", g.tokens},          {"text", g.text},
                   {"finish", name_of(g.finish)}, {"prompt_tokens", prompt_tokens},
                   {"prefill_s", prefill_s},      {"decode_s", decode_s}};
  if (logprobs) j["logprobs"] = g.logprobs;
  return j;
}

// Without --json: the text, or the ids where there is no tokenizer, or with --logprobs a line a token.
void print_result(const Job& job, const Generated& g, bool text_is_out) {
  if (job.a.logprobs) {
    for (size_t i = 0; i < g.tokens.size(); ++i)
      print_line("{}\t{:.6f}\t{}", g.tokens[i], g.logprobs[i],
                 job.tokenizer ? OrderedJson(job.tokenizer->decode({&g.tokens[i], 1}))
                                     .dump(-1, ' ', false, OrderedJson::error_handler_t::replace)
                               : "");
  } else if (job.tokenizer) {
    print(text_is_out ? "\n" : g.text + "\n");
  } else {
    print_line("{}", fmt::join(g.tokens, " "));
  }
}

// The most new tokens behind `tokens` of `what`, where the model has a table of positions. With
// `read_last` the last one must have room, too.
int64_t most_new(const Job& job, const char* what, int64_t tokens, bool read_last) {
  const int64_t positions = job.loaded.model->config().positions, wanted = job.a.generate.max_new;
  if (positions == 0) return wanted;
  require(tokens <= positions, "the {} has {} tokens, and this model has {} positions", what,
          tokens, positions);
  const int64_t room = positions - tokens + (read_last ? 0 : 1);
  if (room < wanted)
    spdlog::warn("this model has {} positions: at most {} new tokens", positions, room);
  return std::min(wanted, room);
}

int run_batch(const Job& job) {
  const size_t B = job.prompts.size();
  const int64_t max_new = most_new(job, "prompt", job.longest_start(), !job.a.state_out.empty());
  Session session = job.session(B);
  for (size_t b = 0; b < B && !job.states.empty(); ++b)
    session.restore(static_cast<int64_t>(b), job.states[job.states.size() == 1 ? 0 : b]);

  const auto start = Clock::now();
  session.read(std::vector<std::span<const int32_t>>(job.prompts.begin(), job.prompts.end()));
  const double prefill_s = seconds_since(start);

  GenerateOptions options = job.options();
  options.max_new = max_new;
  const bool stream = B == 1 && !job.common.json && !job.a.logprobs && job.tokenizer;
  if (stream)
    options.text = [](size_t, std::string_view text) {
      print(text);
      flush_output();
    };
  std::vector<Snapshot> last(B);
  options.read_last = !job.a.state_out.empty();
  if (options.read_last) options.finished = [&](size_t b, Snapshot s) { last[b] = std::move(s); };
  const auto decode = Clock::now();
  const std::vector<Generated> results = generate(session, starts_of(job.prompts), options);
  const double decode_s = seconds_since(decode);

  if (options.read_last) save_state(job.a.state_out, last, job.loaded.hash);
  for (size_t b = 0; b < B; ++b) {
    if (job.common.json) {
      print_json(to_json(results[b], job.prompts[b].size(), prefill_s, decode_s, job.a.logprobs));
    } else {
      print_result(job, results[b], stream);
    }
  }
  return interrupted() ? kInterrupted : kDone;
}

// A line from stdin is a turn; what was said before is the state, and is never read again.
int run_interactive(const Job& job) {
  require(job.prompts.size() <= 1 && job.states.size() <= 1,
          "--interactive: expected one sequence");
  Session session = job.session(1);
  Snapshot last;
  if (!job.states.empty()) {
    session.restore(0, job.states[0]);
    last = session.snapshot(0);  // where there is no turn
  }
  std::vector<int32_t> turn = job.prompts.empty() ? std::vector<int32_t>() : job.prompts[0];
  std::vector<int32_t> said;  // by either, as far as it is known
  GenerateOptions options = job.options();
  options.read_last = true;
  options.finished = [&](size_t, Snapshot s) { last = std::move(s); };
  options.text = [&](size_t, std::string_view text) {
    if (job.common.json) return;
    print(text);
    flush_output();
  };
  const bool person = isatty(0) && isatty(2);
  const auto turns = [&] {
    for (bool first = turn.empty();; first = false) {
      if (turn.empty()) {
        if (person && !job.common.quiet) std::fputs("> ", stderr);
        std::string line;
        if (!std::getline(std::cin, line) || interrupted()) break;
        turn = job.encode(line + "\n", first);
      }
      const int64_t tokens = session.tokens_read(0) + static_cast<int64_t>(turn.size());
      options.max_new = most_new(job, "conversation", tokens, true);
      const std::array<std::span<const int32_t>, 1> rows = {turn};
      const auto start = Clock::now();
      session.read(rows);
      const double prefill_s = seconds_since(start);
      const auto decode = Clock::now();
      said.insert(said.end(), turn.begin(), turn.end());
      const Generated g = std::move(generate(session, {{said, 0}}, options)[0]);
      said.insert(said.end(), g.tokens.begin(), g.tokens.end());
      if (job.common.json) {
        print_json(to_json(g, turn.size(), prefill_s, seconds_since(decode), job.a.logprobs));
      } else {
        print_result(job, g, true);
        flush_output();
      }
      if (interrupted()) break;
      session.restart(1);
      session.restore(0, last);
      turn.clear();
    }
  };
  const auto save = [&] {
    if (!job.a.state_out.empty() && last.tokens > 0)
      save_state(job.a.state_out, {&last, 1}, job.loaded.hash);
  };
  try {
    turns();
  } catch (const Error&) {  // of a line; what was said before it is kept
    save();
    throw;
  }
  save();
  return interrupted() ? kInterrupted : kDone;
}

}  // namespace

Work add_generate(CLI::App& app) {
  const auto a = std::make_shared<Args>();
  a->model.add(app);
  const auto repeated = [&](const std::string& name, const std::string& help) {
    return app.add_option(name, help)
        ->type_name("TEXT")
        ->expected(1, 1 << 20)
        ->allow_extra_args(false);
  };
  a->prompts = repeated("--prompt", "text to continue; several make a batch");
  a->files = repeated("--prompt-file", "a file with a prompt, - for stdin; several make a batch");
  a->ids = repeated("--prompt-tokens", "a prompt as ids: 1,2,3; several make a batch");
  app.add_option("--max-new", a->generate.max_new, "new tokens at most; default 128")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  ops::SamplerOptions& s = a->generate.sampler;
  app.add_option("--temperature", s.temperature, "0: always the most probable token; default 1")
      ->check(number_in(0, 1e6));
  app.add_option("--top-k", s.top_k, "draw from the k most probable tokens; 0: all, the default")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 31));
  app.add_option("--top-p", s.top_p, "draw from the fewest tokens with this mass; default 1")
      ->check(share_above_zero());
  app.add_option("--min-p", s.min_p,
                 "drop tokens below this fraction of the most probable one; default 0")
      ->check(number_in(0, 1));
  app.add_option(
         "--repetition-penalty", s.repetition_penalty,
         "divides logits of tokens that were there (multiplies negative ones), but for those that "
         "a state file has read; default 1")
      ->check(number_in(1e-6, 1e6));
  a->stops =
      repeated("--stop", "a text that ends the generation and is not shown; may be repeated");
  app.add_flag("--logprobs", a->logprobs, "log-probability of each token");
  app.add_flag("--interactive", a->interactive,
               "each line of stdin is a turn; the state is kept between turns");
  add_state_dtype(app, a->scan_state);
  app.add_option("--state-in", a->state_in, "go on from this state file");
  app.add_option("--state-out", a->state_out, "save the state after the last token");
  return [a](const Common& common) {
    check_place(a->state_out);
    const Job job(*a, common);
    return a->interactive ? run_interactive(job) : run_batch(job);
  };
}

}  // namespace krait::cli
