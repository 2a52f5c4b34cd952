"""Prompt and decode speed of llama.cpp (through llama-cpp-python) on the CPU.

  PYTHONPATH=SITE python3 bench/peers/bench_llama.py MODEL.gguf --prompt 512 --new 64 --batch 1 --threads 2

MODEL.gguf: a Krait or Hugging Face directory put through llama.cpp's own convert_hf_to_gguf.py.
Prints one JSON object: prompt tokens/s, decode tokens/s (of all sequences together), seconds from start to
the first token of a 16-token prompt.
"""
import argparse
import ctypes
import json
import statistics
import time

import llama_cpp as package
from llama_cpp import llama_cpp


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    for name, default in [("prompt", 512), ("new", 64), ("batch", 1), ("threads", 2), ("repeat", 3)]:
        p.add_argument("--" + name, type=int, default=default)
    args = p.parse_args()

    start = time.perf_counter()
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(args.model.encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = (args.prompt + args.new + 64) * args.batch
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = args.batch
    params.n_threads = params.n_threads_batch = args.threads
    ctx = llama_cpp.llama_init_from_model(model, params)
    memory = llama_cpp.llama_get_memory(ctx)
    vocab = llama_cpp.llama_model_get_vocab(model)
    n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)

    def decode(tokens_of, position):
        """One batch: a list of tokens for each sequence; logits of the last of each."""
        total = sum(len(t) for t in tokens_of)
        batch = llama_cpp.llama_batch_init(total, 0, args.batch)
        i = 0
        for s, tokens in enumerate(tokens_of):
            for k, token in enumerate(tokens):
                batch.token[i] = token
                batch.pos[i] = position + k
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = s
                batch.logits[i] = k == len(tokens) - 1
                i += 1
        batch.n_tokens = total
        assert llama_cpp.llama_decode(ctx, batch) == 0
        row = llama_cpp.llama_get_logits_ith(ctx, -1)
        best = max(range(n_vocab), key=ctypes.cast(row, ctypes.POINTER(ctypes.c_float)).__getitem__) \
            if args.batch == 1 and position == 0 and total == 16 else 0
        llama_cpp.llama_batch_free(batch)
        return best

    prompt = [(7 * i + 11) % 50000 % n_vocab for i in range(max(args.prompt, 16))]
    decode([prompt[:16]] + [[] for _ in range(args.batch - 1)], 0)
    first_token = time.perf_counter() - start
    prompt_s, decode_s = [], []
    for _ in range(args.repeat):
        llama_cpp.llama_memory_clear(memory, True)
        t = time.perf_counter()
        for at in range(0, args.prompt, 512):
            decode([prompt[at:min(at + 512, args.prompt)]], at)
        prompt_s.append(time.perf_counter() - t)
        llama_cpp.llama_memory_clear(memory, True)
        decode([prompt[:1]] * args.batch, 0)
        t = time.perf_counter()
        for k in range(args.new):
            decode([[prompt[k]]] * args.batch, 1 + k)
        decode_s.append(time.perf_counter() - t)
    print(json.dumps({
        "peer": "llama.cpp", "version": package.__version__,
        "prompt_tokens_per_s": args.prompt / statistics.median(prompt_s),
        "decode_tokens_per_s": args.new * args.batch / statistics.median(decode_s),
        "first_token_s": first_token,
    }))


if __name__ == "__main__":
    main()
