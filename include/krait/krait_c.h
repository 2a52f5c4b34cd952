/* Krait from C, and from any language that calls C: load a published model, read tokens, get logits,
 * fork and keep what it remembers.
 *
 * Functions that can fail return 0 when done and -1 otherwise; krait_last_error() then says why, for the
 * thread that called. Nothing is thrown and nothing exits. A handle may be used by one thread at a time;
 * sessions of one model may run in different threads. Handles may be freed in any order; NULL is
 * accepted. */
#ifndef KRAIT_C_H_
#define KRAIT_C_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct krait_model krait_model;
typedef struct krait_session krait_session; /* one sequence and what it remembers */

/* KRAIT_STORED: that of the file where it is float32 or bfloat16, else float32. */
typedef enum { KRAIT_STORED = 0, KRAIT_FLOAT32 = 1, KRAIT_BFLOAT16 = 2 } krait_dtype;

/* "0.1.0" */
const char* krait_version(void);
/* Of the last failed call of this thread; valid until its next failing call. */
const char* krait_last_error(void);

/* A model directory in one of the published layouts. `dtype` is that of matrix products
 * and activations. */
int krait_model_load(const char* directory, krait_dtype dtype, krait_model** model);
void krait_model_free(krait_model* model);
/* Token ids are from 0 to this, exclusive. */
int64_t krait_model_vocab(const krait_model* model);
/* Floats in a row of logits: the vocabulary, with padding where the model has some. */
int64_t krait_model_logit_count(const krait_model* model);

/* A sequence that has read nothing yet. */
int krait_session_new(const krait_model* model, krait_session** session);
void krait_session_free(krait_session* session);
/* Reads n >= 1 tokens from wherever the sequence is: a whole prompt, a chunk of one, or one token. */
int krait_session_read(krait_session* session, const int32_t* tokens, int64_t n);
/* What comes next: krait_model_logit_count floats, valid until the session's next call. NULL before the
 * first token. */
const float* krait_session_logits(const krait_session* session);
int64_t krait_session_tokens_read(const krait_session* session);
/* A second sequence that goes on from here on its own. */
int krait_session_fork(const krait_session* session, krait_session** fork);
/* State files, the same as `krait generate --state-out` and `--state-in`. A file of another model is
 * refused. */
int krait_session_save(const krait_session* session, const char* path);
int krait_session_load(krait_session* session, const char* path);

#ifdef __cplusplus
}
#endif

#endif /* KRAIT_C_H_ */
