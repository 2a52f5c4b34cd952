#include "krait/krait_c.h"

#include <exception>
#include <memory>
#include <string>

#include "krait/base/version.h"
#include "krait/infer/session.h"
#include "krait/infer/state_file.h"
#include "krait/io/model.h"

// Sessions keep their model alive, so that handles may be freed in any order.
struct krait_model {
  std::shared_ptr<const krait::LoadedModel> loaded;
};

struct krait_session {
  krait_session(const krait_model& m, const krait::SessionOptions& options)
      : model(m), session(*m.loaded->model, options) {}
  krait_model model;
  krait::Session session;
};

namespace {

thread_local std::string last_error;

template <class Work>
int guarded(const Work& work) noexcept {
  try {
    work();
    return 0;
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "unknown failure";
  }
  return -1;
}

std::unique_ptr<krait_session> open_session(const krait_model& model) {
  krait::SessionOptions options;
  options.activation = model.loaded->dtype;
  return std::make_unique<krait_session>(model, options);
}

}  // namespace

const char* krait_version() {
  static const std::string text(krait::version());
  return text.c_str();
}

const char* krait_last_error() { return last_error.c_str(); }

int krait_model_load(const char* directory, krait_dtype dtype, krait_model** model) {
  return guarded([&] {
    krait::require(directory && model, "krait_model_load: a null pointer was handed in");
    krait::require(dtype >= KRAIT_STORED && dtype <= KRAIT_BFLOAT16,
                   "krait_model_load: expected a krait_dtype, 0 to 2, got {}",
                   static_cast<int>(dtype));
    krait::LoadOptions options;
    if (dtype == KRAIT_FLOAT32) options.dtype = krait::DType::f32;
    if (dtype == KRAIT_BFLOAT16) options.dtype = krait::DType::bf16;
    auto loaded = std::make_shared<krait::LoadedModel>(krait::load_model(directory, options));
    *model = new krait_model{std::move(loaded)};
  });
}

void krait_model_free(krait_model* model) { delete model; }

int64_t krait_model_vocab(const krait_model* model) {
  return model->loaded->model->config().vocab_size;
}

int64_t krait_model_logit_count(const krait_model* model) {
  return model->loaded->model->config().padded_vocab();
}

int krait_session_new(const krait_model* model, krait_session** session) {
  return guarded([&] {
    krait::require(model && session, "krait_session_new: a null pointer was handed in");
    *session = open_session(*model).release();
  });
}

void krait_session_free(krait_session* session) { delete session; }

int krait_session_read(krait_session* session, const int32_t* tokens, int64_t n) {
  return guarded([&] {
    krait::require(session && tokens, "krait_session_read: a null pointer was handed in");
    krait::require(n >= 1, "krait_session_read: expected at least 1 token, got {}", n);
    const std::span<const int32_t> row(tokens, static_cast<size_t>(n));
    session->session.read({&row, 1});
  });
}

const float* krait_session_logits(const krait_session* session) {
  if (session->session.tokens_read(0) == 0) return nullptr;
  return static_cast<const float*>(session->session.logits().data);
}

int64_t krait_session_tokens_read(const krait_session* session) {
  return session->session.tokens_read(0);
}

int krait_session_fork(const krait_session* session, krait_session** fork) {
  return guarded([&] {
    krait::require(session && fork, "krait_session_fork: a null pointer was handed in");
    auto other = open_session(session->model);
    other->session.restore(0, session->session.snapshot(0));
    *fork = other.release();
  });
}

int krait_session_save(const krait_session* session, const char* path) {
  return guarded([&] {
    krait::require(session && path, "krait_session_save: a null pointer was handed in");
    const krait::Snapshot rows[] = {session->session.snapshot(0)};
    krait::save_state(path, rows, session->model.loaded->hash);
  });
}

int krait_session_load(krait_session* session, const char* path) {
  return guarded([&] {
    krait::require(session && path, "krait_session_load: a null pointer was handed in");
    const krait::LoadedModel& loaded = *session->model.loaded;
    const auto rows = krait::load_state(path, *loaded.model, loaded.hash);
    krait::require(rows.size() == 1, "{}: expected the state of 1 sequence, got {}", path,
                   rows.size());
    session->session.restore(0, rows[0]);
  });
}
