"""Training steps of the PyTorch peers on the CPU: tokens per second of forward, backward and AdamW.

  PYTHONPATH=SITE python3 bench/peers/bench_torch.py transformers|mambapy \
      --width 256 --layers 6 --vocab 256 --batch 16 --length 256 --steps 3 --threads 2 [--bf16]

SITE holds torch, transformers, mambapy (pip install --target SITE torch transformers mambapy).
Prints one JSON object: the peer, its version, seconds of each step, tokens per second (median), peak memory.
"""
import argparse
import json
import resource
import statistics
import time

import torch


def build(args):
    if args.peer == "transformers":
        import transformers

        config = transformers.MambaConfig(
            vocab_size=args.vocab, hidden_size=args.width, num_hidden_layers=args.layers, use_bias=False
        )
        model = transformers.MambaForCausalLM(config)
        return transformers.__version__, model, lambda ids: model(ids).logits
    import importlib.metadata

    from mambapy.mamba import Mamba, MambaConfig  # mambapy.lm needs mamba_ssm, a GPU package

    embedding = torch.nn.Embedding(args.vocab, args.width)
    layers = Mamba(MambaConfig(d_model=args.width, n_layers=args.layers))
    norm = torch.nn.RMSNorm(args.width)
    model = torch.nn.Sequential(embedding, layers, norm)
    return importlib.metadata.version("mambapy"), model, lambda ids: model(ids) @ embedding.weight.T


def main():
    p = argparse.ArgumentParser()
    p.add_argument("peer", choices=["transformers", "mambapy"])
    for name, default in [("width", 256), ("layers", 6), ("vocab", 256), ("batch", 16), ("length", 256),
                          ("steps", 3), ("threads", 2)]:
        p.add_argument("--" + name, type=int, default=default)
    p.add_argument("--bf16", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    version, model, logits_of = build(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(0, args.vocab, (args.batch, args.length + 1))
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = logits_of(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({
        "peer": args.peer, "version": version, "torch": torch.__version__, "seconds": seconds,
        "tokens_per_s": args.batch * args.length / statistics.median(seconds),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }))


if __name__ == "__main__":
    main()
