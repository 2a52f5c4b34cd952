/* check MODEL FOLDER: the C API as a C program sees it. */
#include <krait/krait_c.h>
#include <stdio.h>
#include <string.h>

static int failures = 0;

static void expect(int ok, const char* what) {
  if (ok) return;
  fprintf(stderr, "expected: %s (last error: %s)\n", what, krait_last_error());
  failures++;
}

static int same(const krait_session* a, const krait_session* b, int64_t n) {
  return memcmp(krait_session_logits(a), krait_session_logits(b), (size_t)n * sizeof(float)) == 0;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  char path[4096];
  snprintf(path, sizeof path, "%s/capi-state.safetensors", argv[2]);
  krait_model* model = NULL;
  krait_session *a = NULL, *b = NULL, *c = NULL;

  expect(krait_model_load("/no/such/folder", KRAIT_FLOAT32, &model) == -1,
         "a missing folder fails");
  expect(strstr(krait_last_error(), "/no/such/folder") != NULL, "the message names the folder");
  expect(krait_model_load(NULL, KRAIT_FLOAT32, &model) == -1, "a null path fails");
  expect(krait_model_load(argv[1], (krait_dtype)3, &model) == -1 &&
             strstr(krait_last_error(), "got 3"),
         "a type that there is not fails");
  expect(krait_model_load(argv[1], KRAIT_FLOAT32, &model) == 0, "the model loads");
  if (!model) return 1;
  const int64_t V = krait_model_logit_count(model);
  expect(krait_model_vocab(model) == 256 && V == 256, "a vocabulary of bytes");

  const int32_t prompt[] = {'f', 'o', 'r', 'k', ' ', 'm', 'e'};
  const int32_t left[] = {'l'}, right[] = {'r'}, outside[] = {'x', 256};
  expect(krait_session_new(model, &a) == 0, "a session");
  expect(krait_session_logits(a) == NULL, "no logits before the first token");
  expect(krait_session_read(a, prompt, 7) == 0, "the prompt is read");
  expect(krait_session_read(a, outside, 2) == -1, "a token outside the vocabulary is refused");
  expect(krait_session_read(a, prompt, 0) == -1, "no token is refused");
  expect(krait_session_tokens_read(a) == 7, "7 tokens were read");

  expect(krait_session_fork(a, &b) == 0, "a fork");
  expect(same(a, b, V), "a fork predicts the same");
  expect(krait_session_save(a, path) == 0, "the state is saved");
  expect(krait_session_read(a, left, 1) == 0 && krait_session_read(b, right, 1) == 0, "both go on");
  expect(!same(a, b, V), "two continuations differ");

  expect(krait_session_new(model, &c) == 0 && krait_session_load(c, path) == 0,
         "the state is loaded");
  expect(krait_session_tokens_read(c) == 7, "with the number of tokens");
  krait_model_free(model); /* sessions keep what they need */
  expect(krait_session_read(c, left, 1) == 0 && same(a, c, V), "and goes on as the saved one did");
  expect(krait_session_load(c, "/no/such/file") == -1, "a missing state file fails");

  krait_session_free(a);
  krait_session_free(b);
  krait_session_free(c);
  krait_session_free(NULL);
  remove(path);
  printf("krait %s from C: %s\n", krait_version(), failures ? "FAILED" : "ok");
  return failures != 0;
}
