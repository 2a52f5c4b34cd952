#!/usr/bin/env python3
"""Does training in bfloat16 follow the float32 loss? (Issue 4, section 2: within 0.5% over 2,000 steps.)

Trains byte-tiny on one text from the same weights on the same batches, once in each type, at sequence lengths around
and off the tiles, and compares the mean loss of each 100 steps.

    bench/track_bf16.py KRAIT TEXT [--device cuda] [--steps 2000] [--model byte-tiny] [--jobs 1]
"""
import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import tempfile
import time

LENGTHS = {255: 16, 257: 16, 1023: 4, 4096: 1}  # and sequences a step
BLOCK = 100  # steps of a mean


def losses(args, dtype, length, batch):
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        command = [args.krait, "train", "--model", args.model, "--tokenizer", "bytes", "--data", args.text,
                   "--out", run, "--device", args.device, "--dtype", dtype, "--steps", args.steps,
                   "--seq-len", length, "--batch-size", batch, "--lr", 2e-3, "--warmup", 100,
                   "--schedule", "cosine", "--seed", 1, "--eval-every", 0, "--save-every", 0, "--sample-every", 0]
        start = time.time()
        done = subprocess.run([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return [r["loss"] for r in records if "loss" in r], time.time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("krait")
    parser.add_argument("text")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--model", default="byte-tiny")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    args = parser.parse_args()
    pool = concurrent.futures.ThreadPoolExecutor(args.jobs)
    runs = {(length, dtype): pool.submit(losses, args, dtype, length, batch)
            for length, batch in LENGTHS.items() for dtype in ("float32", "bfloat16")}
    print(f"{args.model}, {args.steps} steps on {pathlib.Path(args.text).name}, means of {BLOCK} steps")
    print("length  batch  float32 at the end  bfloat16 at the end  off at the end  most off  seconds")
    good = True
    for length, batch in LENGTHS.items():
        exact, a = runs[length, "float32"].result()
        half, b = runs[length, "bfloat16"].result()
        means = [(sum(exact[i:i + BLOCK]), sum(half[i:i + BLOCK])) for i in range(0, args.steps, BLOCK)]
        off = [h / e - 1 for e, h in means]
        worst = max(off, key=abs)
        good = good and abs(worst) < 0.005
        last = args.steps % BLOCK or BLOCK
        print(f"{length:6}  {batch:5}  {means[-1][0] / last:18.4f}  {means[-1][1] / last:19.4f}  {off[-1]:+14.3%}"
              f"  {worst:+8.3%}  {a:4.1f} + {b:.1f}", flush=True)
    print("within 0.5%" if good else "NOT within 0.5%")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
